import Configuration
import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform
import Telemetry

/// Looks at this host, its guests, and the hosts of their shadows every few seconds: keeps what it finds on disk, tells peers what they ask, and
/// hands each protected domain's pair of samples to whoever subscribed.
public final class TelemetryKeeper: @unchecked Sendable {
    /// What is found of a peer later than this part of the interval is too late for this look.
    private static let shareOfInterval = 0.6
    private static let pruneEveryTicks = 1000
    private static let firstAfterMs = 2000.0
    /// A peer's values stand for three of its looks at most, however often this host looks.
    private static let leastFreshMs = 15_000.0

    private let environment: HostEnvironment
    private weak var registry: Registry?
    private let meter = CPUMeter()
    private let store: SeriesStore
    private let intervalMs: Double
    private let isStopped = Guarded(false)
    /// Before that, which guests may be asked is not known.
    private let knowsProtections = Guarded(false)
    private let subscribers = Guarded<[@Sendable (PairSample) -> Void]>([])
    /// What peers are told, and who has which name.
    private struct Last {
        var values: [String: Double] = [:]
        var shadows: [String: [String: Double]] = [:]
        var at: MonotonicTime?
        var names: [String: String] = [:]
    }
    private let last = Guarded(Last())
    private let inbox = MirrorInbox()

    // Of the telemetry thread.
    private var figures = ReplicationFigures()
    private var outbox = MirrorOutbox()
    private lazy var peers = PeerWatch(environment: environment, meter: meter)
    private var guestFolders: Set<String> = []
    private var ticks = 0

    init(_ registry: Registry) {
        self.registry = registry
        environment = registry.environment
        intervalMs = Double(environment.configuration.telemetryInterval) * 1000
        store = Self.store(environment.configuration)
    }

    static func store(_ configuration: ServiceConfiguration) -> SeriesStore { SeriesStore(folder: "\(configuration.stateDirectory)/telemetry") }

    // MARK: For others

    /// `body` gets each new pair of each protected domain, on the telemetry thread, in their order: it must return within milliseconds.
    public func subscribe(_ body: @escaping @Sendable (PairSample) -> Void) { subscribers.change { $0.append(body) } }

    /// The protections that an earlier service left are taken up: guests may be looked at from now on.
    public func noteProtectionsKnown() { knowsProtections.change { $0 = true } }

    /// What it costs, per cent of one core; nil in the first seconds.
    public var cpuPercent: Double? { meter.percentOfCore }

    /// The UUID of the domain that had this name at the last look.
    func uuid(named name: String) -> String? { last.read { $0.names[name] } }

    func answer(_ request: PeerRequest) -> PeerResponse {
        meter.measure {
            var response = PeerResponse()
            guard request.isPing != true else { return response }
            inbox.put(request.rows ?? [])
            response.telemetry = last.read { last in
                last.at.map { PeerTelemetry(ageMs: MonotonicTime.now.milliseconds(since: $0), values: last.values, shadows: last.shadows) }
            }
            return response
        }
    }

    // MARK: The thread

    func start() {
        startThread("telemetry") { [self] in
            // A service that has just started has guests to take up first.
            _ = isStopped.wait(until: MonotonicTime.now.adding(milliseconds: min(intervalMs, Self.firstAfterMs))) { $0 ? true : nil }
            store.prune()
            let host = HostCollector(meter: meter, folders: Self.folders(environment))
            let domains = DomainCollector(libvirtURI: environment.configuration.libvirtURI, meter: meter, mayExecute: environment.configuration.guestExec) { [weak registry, knowsProtections] uuid in
                knowsProtections.read { $0 } ? registry?.telemetryAccess(uuid) ?? .none : .none
            }
            while !isStopped.read({ $0 }) {
                let begin = MonotonicTime.now
                meter.measure { tick(begin, host, domains) }
                meter.mark()
                _ = isStopped.wait(until: begin.adding(milliseconds: intervalMs)) { $0 ? true : nil }
            }
            domains.stop()
        }
    }

    /// Ends with the look under way.
    public func stop() { isStopped.change { $0 = true } }

    /// Where the guests' storage lies: as configured, else the folders of libvirt's active pools (and those of the running guests' disks).
    private static func folders(_ environment: HostEnvironment) -> @Sendable () -> [String] {
        let configured = environment.configuration.probeDirectories
        guard configured.isEmpty else { return { configured } }
        return {
            guard let pools = try? environment.connect().storagePools(.active) else { return [] }
            let folders = pools.compactMap { PoolDescription(try? $0.xml()) }.filter(\.hasFiles).compactMap(\.targetPath)
            return Set(folders).sorted()
        }
    }

    private func tick(_ begin: MonotonicTime, _ host: HostCollector, _ domains: DomainCollector) {
        let deadline = begin.adding(milliseconds: intervalMs * Self.shareOfInterval)
        let statuses = ((try? registry?.status(of: nil)) ?? []).filter { $0.state != .failedOver }
        let primaries = statuses.filter { $0.role == .primary }
        let shadowHosts = primaries.flatMap { ($0.shadows ?? []).map(\.peer) }
        let ofPairs = Set(statuses.map(\.peer) + shadowHosts)
        let witnesses = ofPairs.isEmpty ? [] : HostSide.witnesses(environment.configuration.peers.map(\.name))
        peers.start(ofPairs.union(witnesses), withValues: Set(primaries.map(\.peer)), outbox)
        var values = host.sample(until: deadline, more: guestFolders)
        let readings = domains.sample(until: deadline)
        if environment.configuration.probeDirectories.isEmpty { guestFolders = readings.reduce(into: []) { $0.formUnion($1.folders) } }
        let time = Sample.now
        let peerReadings = peers.take(until: deadline)
        for (peer, reading) in peerReadings { values.noteWorst(HostSide.roundTrip, of: peer, reading.roundTripMs) }

        let epochs = statuses.map { figures.values($0, at: begin) }
        let replication = zip(statuses, epochs).compactMap { status, epoch in status.role == .primary ? epoch["replication_bytes_per_second"] : nil }
        if !replication.isEmpty { values["host_replication_bytes_per_second"] = replication.reduce(0, +) }
        publish(values, statuses, epochs, readings)
        store.append(Sample(time: time, values: values), to: SeriesStore.host, label: environment.hostName)

        let shadows = Set(statuses.filter { $0.role == .shadow }.map(\.uuid)).subtracting(primaries.map(\.uuid))
        for row in inbox.take(of: shadows, now: time) { store.append(row.sample, to: row.uuid, label: row.label) }
        var pairs: [PairSample] = []
        var rest = Dictionary(readings.map { ($0.uuid, $0) }, uniquingKeysWith: { first, _ in first })
        for (status, epoch) in zip(statuses, epochs) where status.role == .primary {
            var side = HostSide.values(values, towards: status.peer)
            side.merge(rest.removeValue(forKey: status.uuid)?.values ?? [:]) { _, new in new }
            side.merge(epoch) { _, new in new }
            let shadow = peerReadings[status.peer]?.telemetry?.sample(uuid: status.uuid, primaryHost: environment.hostName, now: time,
                                                                       limitMs: max(Self.leastFreshMs, 3 * intervalMs))
            let pair = PairSample(uuid: status.uuid, domain: status.domain, peer: status.peer, primary: Sample(time: time, values: side), shadow: shadow)
            store.append(eachShadow(status, values, at: begin, pair).flat, to: pair.uuid, label: pair.domain)
            pairs.append(pair)
            for subscriber in subscribers.read({ $0 }) { subscriber(pair) }
        }
        for reading in rest.values {
            let alone = PairSample(uuid: reading.uuid, domain: reading.name, peer: "", primary: Sample(time: time, values: reading.values), shadow: nil)
            store.append(alone.flat, to: alone.uuid, label: alone.domain)
        }
        outbox = MirrorOutbox(pairs, at: .now)
        ticks += 1
        if ticks % Self.pruneEveryTicks == 0 { store.prune() }
    }

    /// The pair with what is known of each of several shadows. For whoever reads it later: what compares the two sides gets the pair alone.
    private func eachShadow(_ status: DomainStatus, _ host: [String: Double], at now: MonotonicTime, _ pair: PairSample) -> PairSample {
        var whole = pair
        whole.primary.values.merge(figures.shadowValues(status, at: now)) { _, new in new }
        for shadow in status.shadows ?? [] where (status.shadows?.count ?? 0) > 1 {
            let name = "\(HostSide.roundTrip)@\(shadow.peer)"
            whole.primary.values[name] = host[name]
        }
        return whole
    }

    private func publish(_ values: [String: Double], _ statuses: [DomainStatus], _ epochs: [[String: Double]], _ readings: [DomainReading]) {
        var fresh = Last(values: values, at: .now)
        for (status, epoch) in zip(statuses, epochs) {
            if status.role == .shadow { fresh.shadows[status.uuid] = epoch } else { fresh.names[status.domain] = status.uuid }
        }
        for reading in readings { fresh.names[reading.name] = reading.uuid }
        let done = fresh
        last.change { $0 = done }
    }
}
