import ControlProtocol
import Foundation
import Libvirt
import Platform

/// Sees to it that domains that run here have what their policies ask for.
///
///     started, resumed, policy changed,          +--- nothing to do: forgotten until the next event
///     service or libvirt back      ---> due ---> act --- under way: looked at again in a moment
///                                       ^        +--- failed: the reason is kept for `status`
///                                       '------------- after 1, 2, 4 ... 300 s; the same when there are fewer shadows than the policy asks for
///
/// One thread hands out domains, at most `mostAtOnce` at a time to threads of their own: a libvirt that hangs holds these up and nobody else.
/// What it does is decided anew each time from what is there, so an event too many, or a hook beside it, does no harm.
public final class PolicyKeeper: @unchecked Sendable {
    struct Entry {
        var name = ""
        var engine = ""
        var due = MonotonicTime.now
        var isBusy = false
        /// Something happened while it was busy.
        var isDirty = false
        /// A host said that it takes shadows, while an attempt was under way that may have asked it too early.
        var wasCalled = false
        var failures = 0
        var reason: String?
        var since = ""
        /// The first attempt of a protection that we began is under way.
        var isBeginning = false
        /// A host that is to be emptied of its shadow.
        var leaves: String?
        /// Hosts where an attempt failed, and why.
        var suspects: [String: Suspect] = [:]
        /// It has a shadow, and should have more.
        var shortage: Shortage?
    }

    struct Suspect {
        /// When it may be tried again.
        var until: MonotonicTime
        var reason: String
        var failures = 1
    }

    /// What comes next for a domain.
    enum Step {
        case done
        case again(milliseconds: Double)
        /// It has fewer shadows than it should have: the next attempt comes after a while.
        case short(Shortage)
    }

    private struct State {
        var entries: [String: Entry] = [:]
        /// Domains that a command works on, and how many: hands off.
        var holds: [String: Int] = [:]
        var running = 0
        var isBegun = false
        /// How many shadows the policies of protected domains ask for.
        var wanted: [String: Int] = [:]
        var nextSweep = MonotonicTime.now

        var next: (uuid: String, due: MonotonicTime)? {
            guard isBegun, running < PolicyKeeper.mostAtOnce else { return nil }
            let ready = entries.filter { !$0.value.isBusy && holds[$0.key] == nil }
            return ready.min { $0.value.due < $1.value.due }.map { ($0.key, $0.value.due) }
        }
    }

    /// A protection takes a second or two to begin; more of them at once only slow each other down.
    static let mostAtOnce = 4
    private static let longestSweepMs = 30_000.0
    private static let suspectForMs = 300_000.0

    private let state = Guarded(State())
    private weak var registry: Registry?

    init() {}

    func attach(_ registry: Registry) { self.registry = registry }

    /// From now on it acts; what an earlier service left has been taken up.
    func begin() {
        guard state.change({ state in
            defer { state.isBegun = true }
            return !state.isBegun
        }) else { return }
        startThread("policy") { [weak self] in
            while true {
                guard let self else { return }
                self.handOut()
            }
        }
        lookAtAll()
    }

    // MARK: What happened

    /// A domain runs here now, or may: hooks and libvirt's events say so, in any order and number.
    public func domainStarted(_ uuid: String) { look(uuid.lowercased()) }

    /// It runs here no more. Its shadow goes with its protection, which hears of it by itself.
    public func domainStopped(_ uuid: String) {
        state.change { state in
            (state.entries[uuid.lowercased()], state.wanted[uuid.lowercased()]) = (nil, nil)
        }
    }

    /// Its policy may be another one.
    public func policyChanged(_ uuid: String) { look(uuid.lowercased()) }

    func note(_ event: LifecycleEvent) {
        switch event.event {
        case .started: domainStarted(event.domainUUID)
        case .stopped: domainStopped(event.domainUUID)
        // A guest that came here by a hand-over, or was started paused. Epochs resume their guests all the time: those have a protection.
        case .resumed where registry?.primary(event.domainUUID).map({ $0.board.state == .failedOver }) ?? true: look(event.domainUUID, afterMilliseconds: 1000)
        case .defined(.updated): policyChanged(event.domainUUID)
        default: break
        }
    }

    /// A call of libvirt's hook: the same as its events, a moment earlier.
    func note(_ call: HookCall) {
        // From the text: what a hook was given need not be well-formed.
        guard let xml = call.xml, let begin = xml.range(of: "<uuid>"), let end = xml.range(of: "</uuid>", range: begin.upperBound..<xml.endIndex),
              UUID(uuidString: String(xml[begin.upperBound..<end.lowerBound])) != nil else { return }
        let uuid = String(xml[begin.upperBound..<end.lowerBound])
        switch call.operation {
        case .started, .attach, .reconnect: domainStarted(uuid)
        // An end is told by libvirt's events, which keep their order. Calls come on connections of their own: one about the end that is overtaken by the next
        // start would take away what that start has asked for.
        case .stopped, .release, .prepare, .start, .migrate, .restore: break
        }
    }

    public func note(_ event: MetadataEvent) {
        if event.namespace == DomainPolicy.namespace { policyChanged(event.domainUUID) }
    }

    /// Every domain that runs here, on a thread of its own: it asks libvirt.
    func lookAtAll() {
        guard state.read({ $0.isBegun }) else { return }
        startThread("policy-scan") { [weak self] in
            do {
                for domain in try self?.registry?.environment.connect().domains(.active) ?? [] { self?.look(domain.uuid) }
            } catch {
                Log.debug("Policies were not looked for: \(error)")
            }
        }
    }

    /// A shadow has to go elsewhere: `host` is being emptied.
    func leave(_ uuid: String, _ host: String) {
        // First what is to be done: a look that is over before knows nothing of it, and takes the entry with it.
        state.change { $0.entries[uuid, default: Entry()].leaves = host }
        look(uuid)
    }

    /// At once, or with a delay what is not in back-off: an attempt that fails resumes its guest as well, and must not lead to the next one.
    func look(_ uuid: String, afterMilliseconds delay: Double? = nil) {
        let due = MonotonicTime.now.adding(milliseconds: delay ?? 0)
        state.change { state in
            guard var entry = state.entries[uuid] else { return state.entries[uuid] = Entry(due: due) }
            guard delay == nil || entry.failures == 0 else { return }
            if entry.isBusy { entry.isDirty = true } else { entry.due = min(entry.due, due) }
            state.entries[uuid] = entry
        }
    }

    // MARK: Commands

    /// Until `release` nothing is done about a domain: a command works on it. Waits for what is under way, up to a limit.
    func hold(_ uuid: String) {
        state.change { $0.holds[uuid, default: 0] += 1 }
        _ = state.wait(until: MonotonicTime.now.adding(milliseconds: 20_000)) { $0.entries[uuid]?.isBusy == true ? nil : true }
    }

    func release(_ uuid: String) {
        state.change { state in
            let left = (state.holds[uuid] ?? 1) - 1
            state.holds[uuid] = left > 0 ? left : nil
        }
        look(uuid)
    }

    // MARK: Handing out

    /// Now and then, see `lookAtLost`.
    private func sweep() {
        guard let registry, let replaceAfterMs = registry.environment.replaceAfterMs else { return }
        let isDue = state.change { state in
            guard state.nextSweep <= .now else { return false }
            state.nextSweep = MonotonicTime.now.adding(milliseconds: min(Self.longestSweepMs, replaceAfterMs / 2))
            return true
        }
        if isDue { lookAtLost(registry) }
    }

    private func handOut() {
        sweep()
        let idle = MonotonicTime.now.adding(milliseconds: 1000)
        let limit = state.read { $0.next.map { min($0.due, idle) } } ?? idle
        guard let uuid: String = state.wait(until: limit, { state in
            guard let next = state.next, next.due <= .now else { return nil }
            state.entries[next.uuid]?.isBusy = true
            state.entries[next.uuid]?.isDirty = false
            state.running += 1
            return next.uuid
        }) else { return }
        startThread("policy-domain") { [weak self] in
            guard let self, let registry = self.registry else { return }
            let result = Result { try PolicyAction(registry: registry, keeper: self, uuid: uuid).run() }
            self.finish(uuid, result)
        }
    }

    private func finish(_ uuid: String, _ result: Result<Step, any Error>) {
        let isProtected = registry?.primary(uuid).map { $0.board.state != .failedOver } ?? false
        let told: Told? = state.change { state in
            state.running -= 1
            guard var entry = state.entries[uuid] else { return nil }
            entry.isBusy = false
            let wasCalled = entry.wasCalled
            entry.wasCalled = false
            defer { state.entries[uuid] = entry }
            switch result {
            case .success(.done):
                entry.reason = nil
                entry.failures = 0
                entry.shortage = nil
                guard entry.isDirty else {
                    // Kept for its suspects only.
                    entry.due = MonotonicTime(nanoseconds: .max)
                    return nil
                }
                entry.due = .now
                return nil
            case .success(.again(let milliseconds)):
                entry.due = entry.isDirty ? .now : MonotonicTime.now.adding(milliseconds: milliseconds)
                return nil
            case .success(.short(var shortage)):
                let isNew = entry.shortage.map { !$0.isSame(as: shortage) } ?? true
                if let before = entry.shortage, !isNew { shortage.since = before.since }
                entry.reason = nil
                entry.failures = isNew ? 1 : entry.failures + 1
                entry.shortage = shortage
                let pause = entry.isDirty ? 0 : Backoff.pauseMs(afterFailures: wasCalled ? 1 : entry.failures)
                entry.due = MonotonicTime.now.adding(milliseconds: pause)
                return Told(text: shortage.text, isNew: isNew, name: entry.name, pauseMs: pause, shortage: shortage)
            case .failure(let error):
                // Figures in it are others each time.
                let isNew = entry.reason.map(Self.withoutFigures) != Self.withoutFigures("\(error)")
                if entry.reason == nil { entry.since = Timestamp.now }
                entry.reason = "\(error)"
                entry.isBeginning = false
                entry.failures += 1
                let pause = Backoff.pauseMs(afterFailures: wasCalled ? 1 : entry.failures)
                // What somebody changed meanwhile, the policy for one, may be the remedy.
                entry.due = MonotonicTime.now.adding(milliseconds: entry.isDirty ? min(pause, 1000) : pause)
                let what = isProtected ? "Its policy cannot be followed" : "Its policy asks for a shadow, and it has none"
                return Told(text: "\(what): \(error)", isNew: isNew, name: entry.name, pauseMs: pause)
            }
        }
        guard let told else { return state.change { state in if let entry = state.entries[uuid], !entry.isBusy, entry.due.nanoseconds == .max, entry.suspects.isEmpty { state.entries[uuid] = nil } } }
        tell(told, uuid)
    }

    // MARK: For actions

    var environment: HostEnvironment? { registry?.environment }

    /// Something is planned, or under way, for the domain.
    func isKnown(_ uuid: String) -> Bool { state.read { $0.entries[uuid].map { $0.isBusy || $0.due.nanoseconds != .max } ?? false } }

    /// So many shadows its policy asks for; nil: not known, or none.
    func wanted(_ uuid: String) -> Int? { state.read { $0.wanted[uuid] } }
    func noteWanted(_ uuid: String, _ count: Int?) { state.change { $0.wanted[uuid] = count } }

    func entry(_ uuid: String) -> Entry { state.read { $0.entries[uuid] } ?? Entry() }
    func change(_ uuid: String, _ body: (inout Entry) -> Void) {
        state.change { state in
            guard var entry = state.entries[uuid] else { return }
            body(&entry)
            state.entries[uuid] = entry
        }
    }

    /// Those that are in back-off.
    func changeWaiting(_ body: (inout Entry) -> Void) {
        state.change { state in
            for (uuid, entry) in state.entries where entry.failures > 0 {
                var entry = entry
                body(&entry)
                state.entries[uuid] = entry
            }
        }
    }

    func suspect(_ uuid: String, _ host: String, _ reason: String) {
        let until = MonotonicTime.now.adding(milliseconds: Self.suspectForMs)
        change(uuid) { entry in
            let before = entry.suspects[host].flatMap { $0.until > .now ? $0.failures : nil } ?? 0
            entry.suspects[host] = Suspect(until: until, reason: reason, failures: before + 1)
        }
    }

    /// Hosts that are not to be tried for now, with the reason. One failure is none: the guest's former host may still be taking its leave.
    func excluded(_ uuid: String) -> [String: String] {
        entry(uuid).suspects.filter { $0.value.until > .now && $0.value.failures > 1 }.mapValues { "Attempts there failed: \($0.reason)" }
    }

    /// Domains that should have a shadow and have none, for `status`.
    var waiting: [DomainStatus] {
        state.read { state in
            state.entries.compactMap { uuid, entry in
                guard let reason = entry.reason else { return nil }
                let left = entry.due > .now ? Int(entry.due.milliseconds(since: .now) / 1000) : 0
                return DomainStatus(domain: entry.name.isEmpty ? uuid : entry.name, uuid: uuid, role: .primary, peer: "-", engine: entry.engine, state: .degraded,
                                    reason: "Without the shadow that its policy asks for: \(reason). Next attempt in \(left) s", since: entry.since, configuredIntervalMs: 0)
            }
        }
    }
}
