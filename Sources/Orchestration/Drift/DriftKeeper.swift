import Configuration
import ControlProtocol
import Drift
import Foundation
import Platform
import Telemetry

/// Watches every protected domain of this host drift apart from its shadow's host, and acts on it: tells, steers the interval between epochs, and lets the
/// guest leave in time.
///
/// What telemetry measures is judged on telemetry's thread, within a millisecond or two; whatever asks libvirt or peers happens on a thread of its own.
public final class DriftKeeper: @unchecked Sendable {
    struct Key: Hashable {
        var uuid: String
        /// The shadow's host.
        var peer: String
    }

    private static let tickMs = 1000.0
    private static let saveEveryMs = 120_000.0
    private static let shapeEveryMs = 60_000.0

    let environment: HostEnvironment
    weak var registry: Registry?
    private let store: DriftStore
    /// Of the BMC; nil: nobody knows.
    let health: @Sendable () -> HealthReport?
    let watches = Guarded<[Key: DriftWatch]>([:])
    private let isStopped = Guarded(false)

    init(_ registry: Registry, health: @escaping @Sendable () -> HealthReport?) {
        self.registry = registry
        self.health = health
        environment = registry.environment
        store = DriftStore(stateDirectory: environment.configuration.stateDirectory)
    }

    func start(_ telemetry: TelemetryKeeper) {
        telemetry.subscribe { [weak self] in self?.take($0) }
        startThread("drift") { [self] in
            while !isStopped.read({ $0 }) {
                tick()
                _ = isStopped.wait(until: MonotonicTime.now.adding(milliseconds: Self.tickMs)) { $0 ? true : nil }
            }
        }
    }

    /// Keeps what was learned for the next service.
    public func stop() {
        isStopped.change { $0 = true }
        for watch in watches.read({ Array($0.values) }) { save(watch) }
    }

    // MARK: Samples

    private func take(_ pair: PairSample) {
        let key = Key(uuid: pair.uuid, peer: pair.peer)
        let isKnown = watches.read { $0[key] != nil }
        let restored = isKnown ? nil : restore(key, pair.domain)
        watches.change { watches in
            if let restored, watches[key] == nil { watches[key] = restored }
            watches[key]?.take(pair)
        }
    }

    private func restore(_ key: Key, _ domain: String) -> DriftWatch {
        let step = environment.configuration.telemetryInterval
        let saved = store.load(uuid: key.uuid, peer: key.peer, stepSeconds: step)
            ?? DriftWatch.fresh(uuid: key.uuid, peer: key.peer, stepSeconds: step, shape: nil, now: Self.now)
        return DriftWatch(domain: domain, saved)
    }

    static var now: Double { Double(Sample.now) / 1000 }
    /// The same without the steps of a clock that is set: a step is no time that an alarm has lasted.
    static var steadyNow: Double { Double(MonotonicTime.now.nanoseconds) / 1e9 + clockOffset }
    private static let clockOffset = now - Double(MonotonicTime.now.nanoseconds) / 1e9

    /// What this host's hardware reports: for a while less evidence is needed against its side.
    public func note(_ events: [ControlProtocol.HardwareEvent]) {
        let troubles = events.filter(\.isTrouble).suffix(16)
        watches.change { watches in
            for key in watches.keys {
                for event in troubles { watches[key]?.saved.analyzer.note(hardwareEvent: Drift.HardwareEvent(time: event.seconds, side: .primary, sensor: event.sensor)) }
            }
        }
    }

    // MARK: The thread

    private func tick() {
        guard let registry else { return }
        let now = Self.now, report = health(), clearedAt = environment.marks.clearedAt
        for (key, watch) in watches.read({ $0 }) {
            guard let protection = registry.primary(key.uuid), protection.shadowHosts.contains(key.peer), protection.board.state != .failedOver else {
                end(key, watch)
                continue
            }
            // Of several shadows the freshest one counts; what is known of the others is kept.
            guard protection.peer.name == key.peer else { continue }
            lookAtShape(key, watch, protection, now)
            tell(key, watch)
            let trouble = HardwareTrouble(report, kpis: watch.hostValues, now: now, since: clearedAt)
            let status = protection.status
            steer(key, protection, status, trouble)
            consider(key, protection, status, trouble, now)
            if watch.savedAt.adding(milliseconds: Self.saveEveryMs) <= .now {
                save(watch)
                watches.change { $0[key]?.savedAt = .now }
            }
        }
    }

    /// The pair is no more: what was learned of it is about a past that does not come back.
    private func end(_ key: Key, _ watch: DriftWatch) {
        watches.change { $0[key] = nil }
        store.remove(uuid: key.uuid, peer: key.peer)
        if watch.isAlarmTold { record("drift", watch, "\(watch.domain) is not protected to \(key.peer) any more: its drift is not watched", ["state": "ended"]) }
    }

    private func save(_ watch: DriftWatch) {
        do { try store.save(watch.saved) } catch { Log.warning("What was learned of \(watch.domain) cannot be kept in \(store.folder): \(error)") }
    }

    /// A guest with other CPUs, memory or disks is learned anew.
    private func lookAtShape(_ key: Key, _ watch: DriftWatch, _ protection: PrimaryProtection, _ now: Double) {
        if let at = watch.shapeAt, at.adding(milliseconds: Self.shapeEveryMs) > .now { return }
        guard !protection.libvirtAway, let xml = try? protection.domain.handle().xml(flags: []), let shape = try? DomainDefinition(xml: xml).shape else { return }
        let isOther = watches.change { watches -> Bool in
            guard let known = watches[key]?.saved.shape, known != shape else {
                watches[key]?.saved.shape = shape
                watches[key]?.shapeAt = .now
                return false
            }
            watches[key]?.begin(shape: shape, now: now)
            watches[key]?.shapeAt = .now
            return true
        }
        if isOther { Log.info("\(watch.domain): it has \(shape) now; what is normal is learned anew") }
    }

    /// One event when drift begins, one when it is over.
    private func tell(_ key: Key, _ watch: DriftWatch) {
        guard let verdict = watch.verdict, let score = watch.score else { return }
        let details = ["score": String(format: "%.2f", score), "side": verdict.side?.rawValue ?? "unknown", "kpi": verdict.contributions.first?.kpi ?? "none"]
        if !watch.isAlarmTold, score >= 1 {
            watches.change { $0[key]?.isAlarmTold = true }
            let lines = verdict.explanation.joined(separator: "; ")
            Log.warning("\(watch.domain): \(lines)")
            record("drift", watch, lines, details.merging(["state": "began"]) { mine, _ in mine })
        } else if watch.isAlarmTold, score < WarmSwapLaw.over {
            watches.change { $0[key]?.isAlarmTold = false }
            Log.info("\(watch.domain): the drift is over (score \(String(format: "%.2f", score)))")
            record("drift", watch, "The drift of \(watch.domain) is over", details.merging(["state": "ended"]) { mine, _ in mine })
        }
    }

    func record(_ kind: EventKind, _ watch: DriftWatch, _ message: String, _ details: [String: String] = [:]) {
        environment.events.record(kind: kind, domain: watch.domain, uuid: watch.saved.uuid, message: message,
                                  details: details.merging(["peer": watch.saved.peer]) { mine, _ in mine })
    }
}
