import Foundation
import Platform

/// Measures this host; the same code on both sides of a protection. What can hang hangs on a thread of its own.
public final class HostCollector: @unchecked Sendable {
    /// A look waits for the storage so long. One that takes longer is reported with what it has taken so far: at least that, and a host whose storage
    /// hardly answers any more is the very one to be noticed.
    private static let storageLimitMs = 2000.0
    /// What is longer says no more.
    private static let mostStorageMs = 60_000.0
    /// What was found of the disks stands for as long as two looks.
    private static let smartLastsMs = 2 * DiskHealth.toolEveryMs
    private static let foldersEveryMs = 60_000.0
    public static let mostFolders = 8

    private let meter: CPUMeter
    private let files: HostFiles
    private let folders: @Sendable () -> [String]
    private var counters: HostCounters
    private let wakeups: Probe<Double>
    private var memory: MemoryProbe?
    private var storage: [String: Probe<StorageProbe.Latency>] = [:]
    private let folderList: Probe<[String]>
    private let smart: Probe<[String: Double]>
    private var named: [String] = []
    private var knownFolders: [String] = []
    private var noted: Set<String> = []
    private var foldersAskedAt: MonotonicTime?
    private var smartAskedAt: MonotonicTime?
    private var lastSmart: (values: [String: Double], at: MonotonicTime)?

    /// - Parameters:
    ///   - root: a folder in the place of `/`, for tests.
    ///   - folders: where the guests' storage lies; asked on a thread of its own now and then.
    public init(meter: CPUMeter, root: String = "", folders: @escaping @Sendable () -> [String]) {
        self.meter = meter
        self.folders = folders
        files = HostFiles(root: root)
        counters = HostCounters(files)
        wakeups = Probe("tele-wakeup", meter: meter)
        folderList = Probe("tele-folders", meter: meter)
        smart = Probe("tele-smart", meter: meter)
        do {
            memory = try meter.measure { try MemoryProbe(bytes: MemoryProbe.size(files)) }
        } catch {
            Log.warning("Telemetry: memory latency is not measured: \(error)")
        }
    }

    /// One look. Returns by `deadline`, give or take the few milliseconds of what cannot hang; call it from one thread.
    /// `more`: folders besides those that were named at the beginning.
    public func sample(until deadline: MonotonicTime, more: Set<String> = []) -> [String: Double] {
        let now = MonotonicTime.now
        findFolders(now, more)
        startStorage()
        wakeups.start { WakeupProbe.look() }
        var values = counters.sample(at: now)
        values.note("host_memory_latency_ns", memory?.look())
        values.merge(diskHealth(now)) { _, new in new }
        let limit = min(deadline, now.adding(milliseconds: Self.storageLimitMs))
        for folder in knownFolders {
            guard let latency = storage[folder]?.take(until: limit) else {
                values.noteWorst("host_storage_write_ms", of: folder, storage[folder]?.busyMs.map { min($0, Self.mostStorageMs) })
                continue
            }
            values.noteWorst("host_storage_write_ms", of: folder, latency.writeMs)
            values.noteWorst("host_storage_read_ms", of: folder, latency.readMs)
        }
        values.note("host_wakeup_ms", wakeups.take(until: limit))
        return values
    }

    private func findFolders(_ now: MonotonicTime, _ more: Set<String>) {
        if foldersAskedAt.map({ now.milliseconds(since: $0) >= Self.foldersEveryMs }) ?? true, folderList.start({ [folders] in folders() }) {
            // The first sample has them as well, when they are known at once.
            if foldersAskedAt == nil { named = folderList.take(until: now.adding(milliseconds: 200)) ?? [] }
            foldersAskedAt = now
        }
        if let found = folderList.take(until: now) { named = found }
        knownFolders = Array((named + more.subtracting(named).sorted()).prefix(Self.mostFolders))
        // A probe that hangs is kept: its folder may come back.
        storage = storage.filter { knownFolders.contains($0.key) || $0.value.isBusy }
    }

    private func startStorage() {
        for folder in knownFolders {
            let probe = storage[folder] ?? Probe("tele-storage", meter: meter)
            storage[folder] = probe
            let path = files.root + folder
            let isNew = noted.count < 1000 && noted.insert(folder).inserted
            probe.start {
                do {
                    return try StorageProbe(folder: path).look()
                } catch {
                    if isNew { Log.info("Telemetry: storage latency of \(folder) is not measured: \(error)") }
                    return nil
                }
            }
        }
    }

    private func diskHealth(_ now: MonotonicTime) -> [String: Double] {
        if let found = smart.take(until: now) { lastSmart = (found, now) }
        if let every = DiskHealth(files).everyMs, smartAskedAt.map({ now.milliseconds(since: $0) >= every }) ?? true {
            if smart.start({ [files] in DiskHealth(files).look(DiskHealth.installed) }) { smartAskedAt = now }
        }
        guard let lastSmart, now.milliseconds(since: lastSmart.at) < Self.smartLastsMs else { return [:] }
        return lastSmart.values
    }
}
