import Configuration
import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform
import Replication
import ReplicaStore
import Transport

/// All protections of this host, of both roles, and what administrators and peers may do with them.
public final class Registry: @unchecked Sendable {
    struct Entries {
        var primaries: [String: PrimaryProtection] = [:]
        var shadows: [String: ShadowProtection] = [:]
    }

    public let environment: HostEnvironment
    let entries = Guarded(Entries())
    /// Sessions by which guests came here that have not been protected from here yet.
    private let origins = Guarded<[String: UUID]>([:])
    /// `protect` and `prepare` of one domain must not overlap; they are rare, so all of them take turns.
    let admission = NSLock()
    /// Domains without a shadow that are on their way to another host, by UUID.
    let migrations = Guarded<[String: LiveMigration]>([:])
    /// Does what domains' policies ask for.
    public let keeper = PolicyKeeper()
    /// Whether this host takes guests and shadows at the moment.
    let drains: DrainStore
    let isDrainUnderWay = Guarded(false)
    /// Guests on their way back to a host that was drained.
    let homecomings = Guarded<[String: Homecoming]>([:])
    /// Calls of libvirt's hook, on their way to whoever acts on them.
    public let hooks = HookQueue()
    /// Nil before it is begun, and with `telemetry_interval = 0`.
    let telemetryBox = Guarded<TelemetryKeeper?>(nil)
    let driftBox = Guarded<DriftKeeper?>(nil)
    let healthSource = Guarded<(@Sendable () -> HealthReport)?>(nil)
    /// One bundle at a time.
    let diagnosing = NSLock()
    /// What an earlier service left is known again.
    let isTakenUp = Guarded(false)

    public init(environment: HostEnvironment) {
        self.environment = environment
        drains = DrainStore(stateDirectory: environment.configuration.stateDirectory)
        keeper.attach(self)
        hooks.onHook { [keeper] in keeper.note($0) }
    }

    /// Shadows that wait here.
    var waitingShadows: [ShadowProtection] { entries.read { $0.shadows.values.filter { $0.phase != .running } } }
    /// Protections of guests that run here.
    var runningPrimaries: [PrimaryProtection] { entries.read { Array($0.primaries.values) }.filter { $0.board.state != .failedOver } }

    func primary(_ uuid: String) -> PrimaryProtection? { entries.read { $0.primaries[uuid] } }
    func shadow(_ uuid: String) -> ShadowProtection? { entries.read { $0.shadows[uuid] } }

    func forget(_ protection: PrimaryProtection) {
        entries.change { entries in
            if entries.primaries[protection.domain.uuid] === protection { entries.primaries[protection.domain.uuid] = nil }
        }
    }

    // MARK: Libvirt's events

    public func dispatch(_ event: LifecycleEvent) {
        primary(event.domainUUID)?.post(.lifecycle(event.event))
        keeper.note(event)
        switch event.event {
        case .stopped: shadowChanged(event.domainUUID, isResumed: false)
        case .resumed:
            shadowChanged(event.domainUUID, isResumed: true)
            noteResumed(event.domainUUID)
        default: break
        }
    }

    /// What happened to a domain here that is, or was, a shadow. Off the event loop's thread: it asks libvirt.
    private func shadowChanged(_ uuid: String, isResumed: Bool) {
        guard let shadow = shadow(uuid), shadow.phase != .unknown || shadow.isLeftOver else { return }
        startThread("shadow-change") { [self] in
            if shadow.isLeftOver { return removeLeftOver(shadow) }
            if shadow.phase == .running {
                // A guest that came here by a hand-over and has ended is an ordinary domain again.
                guard !isResumed, (try? environment.connect().lookup(uuid: uuid).isActive()) != true else { return }
                environment.records.remove(uuid)
            } else if !shadow.spoiled(byResume: isResumed) {
                return
            }
            entries.change { entries in
                if entries.shadows[uuid] === shadow { entries.shadows[uuid] = nil }
            }
        }
    }

    public func dispatch(_ event: MonitorEvent) {
        guard let primary = primary(event.domainUUID) else { return }
        let moment = UInt64(max(0, event.seconds)) * 1_000_000_000 + UInt64(event.microseconds) * 1000
        switch event.name {
        case "STOP": primary.post(.stopped(moment))
        case "RESUME": primary.noteResume(at: moment)
        case "MIGRATION": primary.post(.migration((try? event.decode(JSONValue.self))?["status"]?.string ?? ""))
        case "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "BLOCK_JOB_ERROR": primary.noteJobEnd()
        case "COLO_EXIT": primary.post(.coloExit((try? event.decode(JSONValue.self))?["reason"]?.string ?? ""))
        default: break
        }
    }

    public func dispatch(_ event: BlockJobEvent) { primary(event.domainUUID)?.noteBlockJob(event) }

    public func libvirtChanged(isThere: Bool) {
        for primary in entries.read({ Array($0.primaries.values) }) { primary.noteLibvirt(isThere: isThere) }
        if isThere { keeper.lookAtAll() }
    }

    // MARK: Administrators

    public func status(of word: String?) throws -> [DomainStatus] {
        let known = entries.read { $0.primaries.values.map(\.status) + $0.shadows.values.map(\.status) }.map(environment.tallies.adding).map(addingDrift).map(keeper.addingShortage)
        let all = (known + keeper.waiting.filter { waiting in !known.contains { $0.uuid == waiting.uuid && $0.state != .failedOver } })
            .sorted { ($0.domain, $0.uuid) < ($1.domain, $1.uuid) }
        guard let word else { return all }
        let uuid = identity(of: word)?.uuid
        let chosen = all.filter { uuid == nil ? $0.domain == word || $0.uuid == word.lowercased() : $0.uuid == uuid }
        if !chosen.isEmpty { return chosen }
        let domain = try lookup(word)
        throw ControlFailure("Domain \(domain.name) is not protected", advice: "Protect it with `shadow-virt protect \(domain.name) --to HOST`")
    }

    func lookup(_ word: String) throws -> Domain {
        do {
            return try environment.connect().lookup(anyOf: word)
        } catch let error as LibvirtError where error.isNoDomain {
            throw ControlFailure("There is no domain \(word) on \(environment.hostName)", advice: "`virsh list --all` shows its domains")
        }
    }

    /// The protection that `word` means, by name, id or UUID.
    /// `otherwise`: what else could be done with a domain that is not protected.
    func primaryNamed(_ word: String, otherwise: (String) -> String = { _ in "" }) throws -> PrimaryProtection {
        let uuid = identity(of: word)?.uuid
        if let known = uuid.flatMap(primary) { return known }
        if let shadow = uuid.flatMap(shadow) {
            throw ControlFailure(shadow.phase == .running
                ? "Domain \(word) runs on \(environment.hostName), but is not protected"
                : "\(environment.hostName) holds the shadow of \(word)",
                advice: shadow.phase == .running ? "Protect it with `shadow-virt protect \(word) --to \(shadow.primary)`" + otherwise(word) : "Run the command on \(shadow.primary)")
        }
        let domain = try lookup(word)
        throw ControlFailure("Domain \(domain.name) is not protected", advice: "Protect it with `shadow-virt protect \(domain.name) --to HOST`" + otherwise(domain.name))
    }

    public func protect(_ word: String, to host: String, _ request: ProtectRequest) throws -> PrimaryProtection {
        try protect(word, to: [ShadowChoice(host: host)], request)
    }

    /// Protects a domain to several hosts, or adds shadows to a protected one's. `demandsAll`: throws unless all of them can be had. `arePlaced`: the hosts
    /// have just been asked whether they suit.
    public func protect(_ word: String, to hosts: [ShadowChoice], demandsAll: Bool = true, arePlaced: Bool = false, _ request: ProtectRequest) throws -> PrimaryProtection {
        try admission.withLock {
            let slots = try makeSlots(hosts)
            let domain = try lookup(word)
            if let known = primary(domain.uuid), let more = try add(slots, to: known, arePlaced: arePlaced, request) { return more }
            try refuseMigrating(domain.uuid)
            try checkHandedOver(domain.uuid) { known in
                ControlFailure("Domain \(domain.name) is protected already, to \(known.peerName) (\(known.board.state.rawValue))",
                               advice: "End that with `shadow-virt unprotect \(domain.name)` first")
            }
            var cameBy: UUID?
            if let shadow = shadow(domain.uuid) {
                // The guest may run here while libvirt has not yet answered the order that started it: that is waited for.
                guard try shadow.verifiedPhase() == .running else {
                    throw ControlFailure("\(environment.hostName) holds the shadow of \(domain.name); the guest runs on \(shadow.primary)")
                }
                shadow.awaitSettled()
                cameBy = shadow.session
                origins.change { $0[domain.uuid] = shadow.session }
                entries.change { $0.shadows[domain.uuid] = nil }
            }
            let (findings, engine) = try check(domain, slots, demandsAll: demandsAll, arePlaced: arePlaced, request)
            let protection = PrimaryProtection(
                domain: LocalDomain(uuid: domain.uuid, name: domain.name, connect: environment.connect), environment: environment, slots: slots,
                request: request, engine: engine, demandsAll: demandsAll) { [weak self] in self?.forget($0) }
            protection.remarks.change { $0 = findings.filter { $0.verdict == .warning && ($0.check.hasPrefix("disk-") || DefinitionCheck.remarked.contains($0.check)) }.map(\.detail) }
            entries.change { $0.primaries[domain.uuid] = protection }
            protection.note(cameBy: cameBy ?? origins.read { $0[domain.uuid] })
            protection.start()
            return protection
        }
    }

    /// Ends a protection. Returns what an administrator should know about replicas that were to be deleted.
    @discardableResult
    public func unprotect(_ word: String, deleteReplica: Bool = false, deadline: MonotonicTime) throws -> [String] {
        let protection = try primaryNamed(word)
        let reply = Reply<Void>()
        let isGhost = protection.record.isGhost == true
        protection.ending.change { $0.deletesReplica = deleteReplica || isGhost }
        protection.post(.unprotect(reply))
        do { try reply.wait(until: deadline) } catch {
            // It goes on: whenever it ends, and why, nobody has asked for that any more.
            protection.ending.change { $0.deletesReplica = isGhost }
            throw error
        }
        return protection.ending.read { $0.remarks }
    }

    /// - Parameter host: whose shadow is to take the guest; nil: the freshest.
    public func swap(_ word: String, to host: String? = nil, deadline: MonotonicTime) throws -> HandoverReport {
        let protection = try primaryNamed(word) { ", or move it without a shadow: `shadow-virt swap \($0) --to HOST`" }
        let reply = Reply<HandoverReport>()
        protection.post(.swap(reply, to: host))
        return try reply.wait(until: deadline)
    }

    /// What a swap under way is at, in words; nil when there is nothing to say.
    public func swapStep(of word: String) -> String? {
        identity(of: word).flatMap { primary($0.uuid) }?.swapStep.read { $0 }
    }

    /// Starts the guest from its shadow on this host, by the administrator's order.
    public func failover(_ word: String, force: Bool, progress: (String) -> Void) throws -> HandoverReport {
        let uuid = identity(of: word)?.uuid
        guard let shadow = uuid.flatMap(shadow) else {
            if uuid.flatMap(primary) != nil {
                throw ControlFailure("\(environment.hostName) is the primary's host of \(word), not its shadow's", advice: "Run `failover` on the host of the shadow, or `swap` here")
            }
            throw ControlFailure("\(environment.hostName) holds no shadow of \(word)", advice: "`shadow-virt status` shows what it holds")
        }
        guard shadow.phase != .running else { throw ControlFailure("Domain \(shadow.name) runs on \(environment.hostName) already") }
        guard !shadow.hasSharedDisks || shadow.mayRestart else {
            throw ControlFailure("Domain \(shadow.name) has disks on shared storage, which went on after its last epoch: its memory must not be set back",
                                 advice: "Once the primary is dead for certain, remove the shadow with `virsh destroy \(shadow.name)`, then define and start the guest here. "
                                    + "Protected with `--on-failure restart` this command boots it cold")
        }
        guard shadow.status.committedEpoch > 0 else {
            throw ControlFailure("The shadow of \(shadow.name) holds no complete epoch yet: there is nothing to start from")
        }
        let begin = MonotonicTime.now
        // A second order beside it would give back the primary's word while the first one relies on it.
        guard shadow.isTakingOver.change({ isUnderWay in
            defer { isUnderWay = true }
            return !isUnderWay
        }) else { throw ControlFailure("The shadow of \(shadow.name) is being made the guest already", advice: "`shadow-virt status` shows how that ends") }
        defer { shadow.isTakingOver.change { $0 = false } }
        try makeSurePrimaryIsDead(shadow, force: force, progress: progress)
        let claim = try claimGuest(shadow, force: force, progress: progress)
        var isDone = false
        defer { if !isDone { claim.giveBack() } }
        try askSiblings(shadow, force: force, progress: progress)
        if shadow.hasSharedDisks {
            progress("Disks on shared storage: the guest boots cold")
            let booted = try shadow.restart(persistentXML: nil, autostart: false)
            isDone = true
            reattach(shadow)
            return HandoverReport(domain: shadow.name, from: shadow.primary, to: environment.hostName, epoch: 0, epochsLost: nil,
                                  activationMs: booted.milliseconds ?? 0, outageMs: MonotonicTime.now.milliseconds(since: begin))
        }
        let loaded = try shadow.load()
        let running = try shadow.run(persistentXML: nil, autostart: false)
        isDone = true
        reattach(shadow)
        return HandoverReport(domain: shadow.name, from: shadow.primary, to: environment.hostName, epoch: loaded.epoch ?? 0, epochsLost: nil,
                              activationMs: (loaded.milliseconds ?? 0) + (running.milliseconds ?? 0), outageMs: MonotonicTime.now.milliseconds(since: begin))
    }

    /// Returns only when the primary does not run, or the administrator takes the risk.
    private func makeSurePrimaryIsDead(_ shadow: ShadowProtection, force: Bool, progress: (String) -> Void) throws {
        let peer = try environment.peer(shadow.primary)
        let verdict = primaryVerdict(shadow, peer)
        switch verdict {
        case .dead(let how):
            progress("The primary does not run on \(peer.name) (\(how))")
        case .live(let state) where force:
            progress("--force: the primary on \(peer.name) is \(state); having it destroyed. What it did since the last epoch is lost")
            _ = try environment.client(of: peer).ask(PeerRequest(.stopPrimary, host: environment.hostName, uuid: shadow.uuid, domain: shadow.name), timeoutMs: 30_000)
        case .live(let state):
            throw ControlFailure("The primary of \(shadow.name) is reachable and \(state) on \(peer.name)",
                                 advice: "Move it without loss with `shadow-virt swap \(shadow.name)` there. `--force` destroys it there first: what it did since the last epoch is lost")
        case .unknown(let reason) where force:
            progress("--force: starting \(shadow.name) though nobody knows whether it runs on \(peer.name) (\(reason)). "
                + "If it does, two copies run at once, answer at the same addresses, and their data part for good")
        case .unknown(let reason):
            throw ControlFailure("Whether \(shadow.name) still runs on \(peer.name) cannot be known: \(reason)",
                                 advice: "Power \(peer.name) off or make sure that the guest is dead, then use `--force`: with a live primary it makes two running copies of the guest")
        }
    }

    private enum Verdict: Sendable { case dead(String), live(String), unknown(String) }

    /// Asks the primary's service and, when that does not answer, its libvirt.
    private func primaryVerdict(_ shadow: ShadowProtection, _ peer: Peer) -> Verdict {
        var reasons: [String] = []
        do {
            let answer = try environment.client(of: peer).ask(PeerRequest(.domainState, host: environment.hostName, uuid: shadow.uuid))
            let state = answer.state ?? "unknown"
            return answer.isLive == false ? .dead(state) : .live(state)
        } catch {
            reasons.append("\(error)")
        }
        // Libvirt's own connection waits as long as TCP does: minutes, when the host is simply gone.
        let answer = Guarded<Result<Verdict, any Error>?>(nil)
        startThread("ask-libvirt") { [uuid = shadow.uuid] in
            let found = Result { try Self.libvirtVerdict(uuid, peer.libvirtURI) }
            answer.change { $0 = found }
        }
        switch answer.wait(until: MonotonicTime.now.adding(milliseconds: Self.libvirtAnswerMs), { $0 }) {
        case .success(let verdict): return verdict
        case .failure(let error): reasons.append("libvirt at \(peer.libvirtURI): \(error)")
        case nil: reasons.append("libvirt at \(peer.libvirtURI) did not answer within \(Int(Self.libvirtAnswerMs / 1000)) s")
        }
        return .unknown(reasons.joined(separator: "; "))
    }

    private static let libvirtAnswerMs = 15_000.0

    private static func libvirtVerdict(_ uuid: String, _ uri: String) throws -> Verdict {
        let connection = try Connection.open(uri, readOnly: false)
        defer { connection.close() }
        do {
            let domain = try connection.lookup(uuid: uuid)
            let (state, reason) = try domain.state()
            return try domain.isActive() ? .live(word(state, reason)) : .dead(state.describe(reason: reason))
        } catch {
            // Not `catch where`: Swift 6.0's compiler crashes on it here.
            guard error.isNoDomain else { throw error }
            return .dead("not defined there")
        }
    }

    // MARK: Peers

    public func answer(_ request: PeerRequest) -> PeerResponse {
        do {
            return try respond(request)
        } catch let failure as ControlFailure {
            return PeerResponse(failure: failure)
        } catch {
            return PeerResponse(failure: ControlFailure("\(environment.hostName): \(error)"))
        }
    }

    private func session(_ request: PeerRequest) throws -> ShadowProtection {
        guard let uuid = request.uuid?.lowercased(), let shadow = shadow(uuid), shadow.session == request.session else {
            throw ControlFailure("\(environment.hostName) does not know this session of \(request.domain ?? request.uuid ?? "the domain")")
        }
        return shadow
    }

    private func respond(_ request: PeerRequest) throws -> PeerResponse {
        switch request.verb {
        case .prepare:
            return try prepare(request)
        case .discard:
            if let shadow = try? session(request) {
                try shadow.discard()
                entries.change { $0.shadows[shadow.uuid] = nil }
            }
            guard request.deleteReplica == true, let uuid = request.uuid else { return PeerResponse(phase: .unknown) }
            return PeerResponse(phase: .unknown, warnings: try deleteReplicas(uuid.lowercased(), domain: request.domain ?? uuid))
        case .load:
            return try session(request).load()
        case .run:
            let shadow = try session(request)
            try? shadow.note(request.family)
            let answer = try shadow.run(persistentXML: request.xml, autostart: request.autostart ?? false)
            reattach(shadow)
            return answer
        case .restart:
            let shadow = try session(request)
            let answer = try shadow.restart(persistentXML: request.xml, autostart: request.autostart ?? false)
            reattach(shadow)
            return answer
        case .family:
            try session(request).note(request.family)
            return PeerResponse()
        case .sibling:
            return try siblingState((request.uuid ?? "").lowercased())
        case .claim, .unclaim:
            return try answerClaim(request)
        case .query:
            guard let shadow = try? session(request) else { return try formerSession(request) }
            return PeerResponse(phase: try shadow.verifiedPhase(), epoch: shadow.status.committedEpoch)
        case .carry:
            try session(request).carry(request.carried)
            return PeerResponse()
        case .domainState:
            return try domainState(request.uuid ?? "")
        case .stopPrimary:
            guard let protection = primary((request.uuid ?? "").lowercased()) else {
                throw ControlFailure("\(environment.hostName) does not protect this domain", advice: "Destroy it there with virsh")
            }
            let reply = Reply<Void>()
            protection.post(.yield(reply, to: request.host))
            try reply.wait(until: MonotonicTime.now.adding(milliseconds: 25_000))
            return PeerResponse()
        case .receive:
            return try receive(request)
        case .received:
            return try IncomingMigration(request, environment: environment).received(autostart: request.autostart ?? false)
        case .abandon:
            return try admission.withLock { try IncomingMigration(request, environment: environment).abandon() }
        case .trust:
            return try answerTrust(request)
        case .health:
            return answerHealth()
        case .telemetry:
            return telemetry?.answer(request) ?? PeerResponse()
        case .facts:
            return PeerResponse(facts: try facts(request))
        case .leave:
            return try moveShadow(request)
        case .sendBack:
            return try sendBack(request)
        case .available:
            keeper.hostIsAvailable(environment.configuration.peer(named: request.host)?.name ?? request.host)
            return PeerResponse()
        case .holds:
            let uuid = (request.uuid ?? "").lowercased()
            return PeerResponse(isLive: shadow(uuid).map { $0.phase == .running } ?? true && (try? environment.connect().lookup(uuid: uuid).isActive()) == true)
        }
    }

    /// A protection that ended with the guest on the other side is over, and forgotten; any other one is `refusal`'s to explain.
    func checkHandedOver(_ uuid: String, forgets: Bool = true, _ refusal: (PrimaryProtection) -> ControlFailure) throws {
        guard let known = primary(uuid) else { return }
        guard known.board.state == .failedOver else { throw refusal(known) }
        guard forgets else { return }
        let reply = Reply<Void>()
        known.post(.unprotect(reply))
        try reply.wait(until: MonotonicTime.now.adding(milliseconds: 5000))
    }

    /// For another host's request: its guest must not be protected from here.
    func checkProtectsNot(_ uuid: String, _ name: String) throws {
        try checkHandedOver(uuid) { known in
            ControlFailure("\(environment.hostName) protects \(name) itself, as its primary (\(known.board.state.rawValue))")
        }
    }

    func checkListsPeer(_ host: String) throws {
        guard environment.configuration.peer(named: host) != nil else {
            throw ControlFailure("\(environment.hostName) does not list \(host) among its peers", advice: "Add it to `peers` in \(environment.configuration.file) there")
        }
    }

    private func prepare(_ request: PeerRequest) throws -> PeerResponse {
        try admission.withLock {
            let fresh = try ShadowProtection(request, environment: environment)
            try checkListsPeer(request.host)
            try checkProtectsNot(fresh.uuid, fresh.name)
            guard !drains.isDraining else {
                throw ControlFailure("\(environment.hostName) is being drained and takes no shadows", advice: "Use another host, or end that with `shadow-virt undrain` there")
            }
            var legacy: ShadowLegacy?
            if let old = shadow(fresh.uuid) {
                guard old.phase != .running else {
                    throw ControlFailure("Domain \(fresh.name) runs on \(environment.hostName), which took it over",
                                         advice: "There are two copies of it: decide which one is right and destroy the other")
                }
                legacy = try old.bequeath()
                if legacy == nil { try old.discard() }
                entries.change { $0.shadows[fresh.uuid] = nil }
            }
            entries.change { $0.shadows[fresh.uuid] = fresh }
            do {
                return try fresh.prepare(request, legacy)
            } catch {
                entries.change { $0.shadows[fresh.uuid] = nil }
                throw error
            }
        }
    }

    private func deleteReplicas(_ uuid: String, domain: String) throws -> [String] {
        // A shadow of another session is about to use them.
        guard shadow(uuid) == nil else { return ["\(environment.hostName) holds a shadow of \(domain): its replicas stay"] }
        return try ReplicaProvisioner(uuid: uuid, domain: domain, environment: environment).deleteVolumes()
    }

    private func domainState(_ uuid: String) throws -> PeerResponse {
        do {
            let domain = try environment.connect().lookup(uuid: uuid)
            let (state, reason) = try domain.state()
            let isActive = try domain.isActive()
            return PeerResponse(state: isActive ? Self.word(state, reason) : state.describe(reason: reason), isLive: isActive)
        } catch let error as LibvirtError where error.isNoDomain {
            return PeerResponse(state: "absent", isLive: false)
        }
    }

    /// An active domain's state for a person: inside an epoch libvirt calls a running guest paused.
    private static func word(_ state: DomainState, _ reason: Int32) -> String {
        switch state {
        case .running: "running"
        case .paused: reason == PausedReason.user.rawValue ? "suspended" : "running"
        default: state.describe(reason: reason)
        }
    }

    /// Whether a data connection of this session is expected here.
    public func knows(session: UUID) -> Bool {
        entries.read { $0.shadows.values.contains { $0.session == session && $0.phase == .receiving } }
    }

    /// Passes a data connection on to its worker.
    public func connect(session: UUID, _ descriptor: consuming Descriptor) {
        entries.read { $0.shadows.values.first { $0.session == session } }?.connect(descriptor)
    }
}
