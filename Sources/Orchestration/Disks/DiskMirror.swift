import ControlProtocol
import Foundation
import Libvirt
import Platform

/// The job that copies one disk of a running guest to an NBD export, and from then on every write of the guest before it completes.
///
///     none --start--> copying --> ready          ready: both ends are equal, and a write counts when both have it
///                        |          |
///                        '----------'--> ended   by `abort`, or by itself: the export failed, or the guest ended
///
/// When the export fails, QEMU ends the job and the guest runs on with its own disk alone. An export that neither answers nor closes its
/// connection holds the guest's writes up: its server has to be ended then, before anything is asked here.
final class DiskMirror: @unchecked Sendable {
    enum State: Equatable, Sendable {
        case none
        /// Progress in bytes, as QEMU counts them; `total` grows with what the guest writes meanwhile.
        case copying(done: UInt64, total: UInt64)
        case ready
        case ended(String)
    }

    let domain: LocalDomain
    let target: String
    let socket: String
    let export: String

    /// What was heard of the current job, from libvirt's events or its answers.
    private struct Knowledge {
        var isStarted = false
        var isReady = false
        var end: String?
        var done: UInt64 = 0
        var total: UInt64 = 0
    }
    private let knowledge = Guarded(Knowledge())

    /// `socket`: of the NBD server, in a folder that QEMU may enter. `export`: the disk's target, unless told otherwise.
    init(domain: LocalDomain, target: String, socket: String, export: String? = nil) {
        self.domain = domain
        self.target = target
        self.socket = socket
        self.export = export ?? target
    }

    /// 64 KiB: the chunk that resynchronisation compares. QEMU copies and tracks the disk in such pieces.
    private static let granularity: UInt32 = 64 << 10

    /// Starts the job. QEMU connects to the export before this returns. `bytesPerSecond` limits the first copy only; nil: as fast as it goes.
    func start(bytesPerSecond: UInt64? = nil) throws {
        knowledge.change { $0 = Knowledge(isStarted: true) }
        var parameters: TypedParameters = ["granularity": .uint(Self.granularity)]
        if let bytesPerSecond { parameters.append("bandwidth", .ulong(bytesPerSecond)) }
        do {
            try domain.handle().blockCopy(disk: target, destinationXML: ReplicaLayout.mirrorDestinationXML(socket: socket, export: export), parameters: parameters,
                                          flags: [.synchronousWrites, .transientJob, .reuseExternal])
        } catch {
            knowledge.change { $0 = Knowledge(end: "\(error)") }
            throw strayFilter() ?? error
        }
    }

    /// Why no mirror can begin, when it is this: a mirror that ended while the guest was being stopped for an epoch may leave its filter on the
    /// disk (QEMU 7.2 seen), which no command takes off.
    private func strayFilter() -> ControlFailure? {
        guard let nodes = try? domain.monitor(QueryNamedBlockNodes()),
              let disks = try? DomainDefinition(xml: domain.handle().xml()).disks else { return nil }
        let filters = nodes.reduce(0) { $0 + ($1.drv == "mirror_top" ? 1 : 0) }
        let jobs = disks.reduce(0) { $0 + ($1.hasBlockJob ? 1 : 0) }
        guard filters > jobs else { return nil }
        return ControlFailure("QEMU has left the filter of a mirror that somebody ended on a disk of \(domain.name), so disk \(target) cannot be copied",
                              advice: "The guest runs on, unprotected: `shadow-virt unprotect`, then `virsh migrate --live` it or shut it down and start it, for a QEMU without the filter")
    }

    /// Libvirt's events about this domain's block jobs; on the event loop's thread.
    func note(_ event: BlockJobEvent) {
        guard event.disk == target, event.domainUUID == domain.uuid, event.type == .copy else { return }
        knowledge.change { known in
            guard known.isStarted else { return }
            switch event.status {
            case .ready: known.isReady = true
            case .failed: known.end = known.end ?? "QEMU ended the copy of disk \(target) with an error"
            case .canceled, .completed: known.end = known.end ?? "The copy of disk \(target) was ended"
            default: break
            }
        }
    }

    /// Asks libvirt, unless an event has told already that the job is over. Cheap enough for several times a second. Under a rate limit
    /// QEMU notices a failed export only after its pause for what it has sent: 12 s were seen for 4 MiB at 256 KiB/s.
    func poll() throws -> State {
        let known = knowledge.read { $0 }
        guard known.isStarted, known.end == nil else { return current }
        let handle = try domain.handle()
        guard let info = try handle.blockJobInfo(disk: target) else {
            // The event, which knows why, may come a moment later.
            _ = knowledge.wait(until: MonotonicTime.now.adding(milliseconds: 200)) { $0.end }
            knowledge.change { $0.end = $0.end ?? "The copy of disk \(target) has ended by itself" }
            return current
        }
        // Equal figures do not mean ready: right after the start both are 0.
        let isReady = try known.isReady || (info.current == info.end && mirror(handle)?.isReady == true)
        knowledge.change { known in
            known.isReady = known.isReady || isReady
            (known.done, known.total) = (info.current, info.end)
        }
        return current
    }

    /// As of the last poll or event.
    var current: State {
        knowledge.read { known in
            if let end = known.end { return .ended(end) }
            guard known.isStarted else { return .none }
            return known.isReady ? .ready : .copying(done: known.done, total: known.total)
        }
    }

    /// For `status`.
    func status(replica: String?) -> DiskStatus {
        let known = knowledge.read { $0 }
        let state: DiskStatus.State = switch current {
        case .none: .waiting
        case .copying: .syncing
        case .ready: .ready
        case .ended: .failed
        }
        return DiskStatus(target: target, replica: replica, state: state, syncedBytes: known.done, totalBytes: known.total)
    }

    /// Waits until the job is ready or over.
    func awaitReady(until deadline: MonotonicTime) throws -> State {
        while true {
            let state = try poll()
            switch state {
            case .ready, .ended, .none: return state
            case .copying: break
            }
            guard deadline > .now else { return state }
            _ = knowledge.wait(until: min(deadline, .now.adding(milliseconds: 100))) { $0.isReady || $0.end != nil ? true : nil }
        }
    }

    /// Ends the job; the guest goes on with its own disk. Nothing happens when there is none of ours.
    func abort(limitMs: Double = 5000) throws {
        defer { knowledge.change { $0.end = $0.end ?? "The copy of disk \(target) was ended" } }
        do {
            let handle = try domain.handle()
            guard try mirror(handle)?.path == socket else { return }
            try Self.end(handle, target, limitMs)
        } catch let error as LibvirtError where error.isNoDomain {
            return
        }
    }

    private func mirror(_ handle: Domain) throws -> DomainDefinition.Disk.Mirror? {
        try DomainDefinition(xml: handle.xml()).disks.first { $0.target == target }?.mirror
    }

    private static func end(_ handle: Domain, _ target: String, _ limitMs: Double) throws {
        do {
            try handle.blockJobAbort(disk: target, flags: [.async])
        } catch {
            // Between the look and the order it may have ended.
            guard (try? handle.blockJobInfo(disk: target)) ?? nil == nil else { throw error }
            return
        }
        let deadline = MonotonicTime.now.adding(milliseconds: limitMs)
        while try handle.isActive(), try handle.blockJobInfo(disk: target) != nil {
            guard deadline > .now else {
                throw ControlFailure("The copy of disk \(target) of domain \(handle.name) does not end", advice: "`virsh blockjob \(handle.name) \(target) --abort` ends it by hand")
            }
            usleep(2000) // The guest of a swap may stand still meanwhile.
        }
    }

    // MARK: Left by an earlier service

    /// Disks with a job of ours that nobody follows any more: its other end is a socket below `folder`.
    static func leftOvers(_ definition: DomainDefinition, folder: String) -> [String] {
        definition.disks.filter { $0.mirror?.path.hasPrefix(folder + "/") == true }.map(\.target)
    }

    /// Ends them. The worker at their other end is gone or has been ended.
    static func abortLeftOvers(of domain: LocalDomain, folder: String, limitMs: Double = 5000) throws {
        let handle = try domain.handle()
        guard try handle.isActive() else { return }
        for target in leftOvers(try DomainDefinition(xml: handle.xml()), folder: folder) {
            Log.info("\(domain.name): ending a copy of disk \(target) that was left behind")
            try end(handle, target, limitMs)
        }
    }
}
