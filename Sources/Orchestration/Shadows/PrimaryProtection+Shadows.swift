import Configuration
import ControlProtocol
import Foundation
import Libvirt
import Platform
import Replication

/// The guest's shadows: how they are prepared, come, go, and which of them is the one to take over.
extension PrimaryProtection {
    var slots: [ShadowSlot] { slotBox.read { $0 } }
    /// Without those whose place another has taken.
    var keptSlots: [ShadowSlot] { slots.filter { !$0.isReplaced } }
    /// The hosts of its shadows.
    public var shadowHosts: [String] { slots.map(\.peer.name) }

    /// By the host's name, upper and lower case alike, as in the configuration.
    func slot(_ host: String) -> ShadowSlot? { slots.first { HostName.isSame($0.peer.name, host) } }
    private func slot(index: Int?) -> ShadowSlot? { slots.first { $0.index == index ?? 0 } }

    /// What every shadow is told of the others.
    var family: ShadowFamily {
        ShadowFamily(generation: captureID, members: slots.map { ShadowChoice(host: $0.peer.name, multiple: $0.multiple) }, request: record.request)
    }

    /// From here on messages go to this shadow, and a hand-over as well.
    func aim(at slot: ShadowSlot) {
        target.change { $0 = slot }
        record.peer = slot.peer.name
        record.session = slot.session
    }

    func noteShadows() { record.shadows = slots.map(\.entry) }

    // MARK: Preparing

    /// Prepares all shadows that are due, or the only ones there are. One that cannot be is left out, unless an administrator waits for it.
    /// Returns the replicas' paths.
    func prepareShadows(_ request: (ShadowSlot) throws -> PeerRequest) throws -> [String: String] {
        captureID = UUID()
        let all = slots
        let due = all.filter(\.isDue)
        var failure: (any Error)?
        var replicas: [String: String]?
        var count = 0
        let asked = due.isEmpty ? all : due
        for slot in all { slot.begin(UUID()) }
        noteShadows()
        aim(at: asked.first ?? all[0])
        try environment.records.write(record)
        let requests = try asked.map { (slot: $0, request: try request($0)) }
        // Starting a domain takes libvirt most of a second on a busy host: not one after the other.
        let answers = forEachAtOnce("prepare", requests) { asked in Result { try asked.slot.client.ask(asked.request, timeoutMs: 60_000) } }
        for (slot, answer) in zip(asked, answers) {
            do {
                let answer = try answer.get()
                for warning in answer.warnings ?? [] {
                    Log.warning("\(domain.name): \(warning)")
                    remarks.change { if !$0.contains(warning) { $0.append(warning) } }
                }
                slot.enter(count)
                count += 1
                replicas = replicas ?? answer.replicas
            } catch {
                if error is ControlFailure, hasBecomeGuest(slot) {
                    aim(at: slot)
                    throw ControlFailure("Domain \(domain.name) was started on \(slot.peer.name) while that could not be reached")
                }
                failure = failure ?? error
                slot.failed("\(error)", isAway: error is PeerUnreachable)
                if demandsAll { throw error }
            }
        }
        guard count > 0 else { throw failure ?? ControlFailure("Domain \(domain.name) has no shadow to be protected to") }
        // Which sessions have begun is part of the record as well.
        noteShadows()
        if let first = slots.first(where: { $0.index == 0 }) { aim(at: first) }
        return replicas ?? [:]
    }

    /// Whether a host that takes no shadow has made one of an earlier session the guest, by its administrator's order while it could not be reached. Sessions
    /// since then are unknown there; the next attempt asks by the one that is known, and stands back.
    private func hasBecomeGuest(_ slot: ShadowSlot) -> Bool {
        guard let former = slot.former else { return false }
        guard (try? slot.client.ask(PeerRequest(.query, host: environment.hostName, session: former, uuid: domain.uuid)))?.phase == .running else { return false }
        slot.takeBack(former)
        // Now, not with the next attempt: every moment more is one that two copies run.
        do { try domain.handle().suspend() } catch { Log.error("\(domain.name) runs on \(slot.peer.name), and the copy here could not be suspended: \(error)") }
        return true
    }

    /// For the source worker, in the order of their places.
    var sourcePeers: [SourcePeer] {
        slots.compactMap { slot in slot.index.map { ($0, slot) } }.sorted { $0.0 < $1.0 }.map { _, slot in
            SourcePeer(session: slot.session, peer: slot.peer.name, address: slot.peer.address.host, port: slot.peer.address.port, multiple: slot.multiple)
        }
    }

    // MARK: Following

    func shadowFollows(_ index: Int?) {
        slot(index: index)?.noteFollowing()
        if slots.allSatisfy(\.follows) { demandsAll = false }
        showShadows()
    }

    /// What the shadow kept of an earlier session does not go over again.
    func memoryIsKnown(_ event: WorkerEvent) {
        noteMemory(of: event.peer)
        guard let bytes = event.bytes, bytes > 0, let slot = slot(index: event.peer) else { return }
        Log.info("\(domain.name): \(slot.peer.name) holds \(bytes >> 20) MiB of the guest's memory from before; what differs goes over")
    }

    func shadowLostItsLink(_ index: Int?, _ reason: String) {
        guard let slot = slot(index: index) else { return }
        slot.noteLinkLost()
        slot.board.set(slot.board.state == .syncing ? .syncing : .degraded, reason)
        showShadows(cause: .peerLost)
    }

    /// True: others go on.
    func shadowIsLost(_ index: Int?, _ reason: String) -> Bool {
        keepCommitted()
        slot(index: index)?.failed(reason)
        guard slots.contains(where: \.isIn) else { return false }
        showShadows()
        return true
    }

    /// The guest is protected as long as one of its shadows follows; what is wrong with the others is said all the same.
    func showShadows(cause: StateCause? = nil) {
        guard !isSuspended else { return }
        let all = slots
        let lacking = all.filter { !$0.follows }
        if let one = lacking.first, lacking.count == all.count {
            let reason = (lacking.first { $0.board.state == .degraded } ?? one).board.current.reason
            guard board.state != .syncing || !reason.isEmpty else { return }
            return board.set(board.state == .syncing ? .syncing : .degraded, reason, cause: cause)
        }
        board.set(.protected, lacking.map { "\($0.peer.name): \($0.board.current.reason.isEmpty ? $0.board.state.rawValue : $0.board.current.reason)" }.joined(separator: "; "))
    }

    /// Looks for absent shadows' hosts. What they lack they get with a new capture, in which the others take part as well.
    func lookForAbsent() {
        guard board.state == .protected, !isSuspended else { return }
        for slot in slots where !slot.isIn {
            slot.lookAgain(environment, uuid: domain.uuid) { [weak self] in self?.shadowAnswers(slot) }
        }
    }

    /// An absent shadow's host answers: it takes part in the capture that begins now.
    func takeIn(_ host: String) -> Outcome? {
        guard let slot = slot(host), !slot.isIn, board.state == .protected, !isSuspended else { return nil }
        return .retry("\(host) takes part again")
    }

    /// The newest epoch that each shadow is known to hold, for when the worker is gone.
    func keepCommitted() {
        guard let statistics = worker?.statistics else { return }
        for slot in slots { if let index = slot.index { slot.noteCommitted(statistics[index, .committedEpoch]) } }
    }

    /// Freshest first. One that follows goes before one whose connection is broken: it answers.
    var slotsByFreshness: [ShadowSlot] {
        keepCommitted()
        if slots.count > 1, slots.allSatisfy({ $0.committed == 0 }) { askWhatTheyHold() }
        return slots.enumerated().sorted { a, b in
            (a.element.committed, a.element.follows ? 1 : 0, b.offset) > (b.element.committed, b.element.follows ? 1 : 0, a.offset)
        }.map(\.element)
    }

    /// A service that has just started knows of no epoch, but the shadows do. All at once: the guest may be dead.
    private func askWhatTheyHold() {
        _ = forEachAtOnce("shadow-ask", slots, until: MonotonicTime.now.adding(milliseconds: Self.askLimitMs)) { [environment, uuid = domain.uuid] slot in
            let request = PeerRequest(.query, host: environment.hostName, session: slot.session, uuid: uuid)
            if let epoch = try? environment.client(of: slot.peer).ask(request, timeoutMs: Self.askLimitMs).epoch { slot.noteCommitted(epoch) }
        }
    }

    private static let askLimitMs = 3000.0

    /// As `settled`, for some of several shadows: they are there, or one of them has failed since then.
    func shadowsSettled(_ hosts: [String], since begin: MonotonicTime, until deadline: MonotonicTime) -> Settled? {
        while deadline > .now {
            let mine = slots.filter { hosts.contains($0.peer.name) }
            if mine.allSatisfy({ $0.follows || $0.board.state == .suspended }) { return .protected }
            if let failed = mine.first(where: { $0.hasFailed(since: begin) }) { return .refused("\(failed.peer.name): \(failed.board.current.reason)") }
            usleep(20_000)
        }
        return nil
    }

    // MARK: Coming and going by order

    /// Adds shadows; the capture begins anew with them.
    func add(_ fresh: [ShadowSlot], _ reply: Reply<Void>) -> Outcome? {
        guard !isSuspended else {
            reply.give(.failure(ControlFailure("Domain \(domain.name) is suspended, and a new shadow needs a new first copy", advice: "Run `virsh resume \(domain.name)` first")))
            return nil
        }
        slotBox.change { slots in slots += fresh.filter { new in !slots.contains { HostName.isSame($0.peer.name, new.peer.name) } } }
        noteShadows()
        reply.give(Result { try environment.records.write(record) })
        return .retry("Copying the guest to \(fresh.map(\.peer.name).joined(separator: ", ")) as well")
    }

    /// Takes one away; the others go on without a break. Nil: done, or refused. The last one is not taken away like this.
    func remove(_ host: String, deleteReplica: Bool, _ reply: Reply<[String]>) {
        guard let slot = slot(host) else {
            return reply.give(.failure(ControlFailure("Domain \(domain.name) has no shadow on \(host)", advice: "`shadow-virt status \(domain.name)` shows its shadows")))
        }
        guard slots.count > 1 else {
            return reply.give(.failure(ControlFailure("The shadow on \(host) is the only one of \(domain.name)", advice: "`shadow-virt unprotect \(domain.name)` ends the protection")))
        }
        if let index = slot.index { worker?.order(WorkerCommand(.dropPeer, peer: index)) }
        slot.leave()
        slotBox.change { $0.removeAll { $0 === slot } }
        noteShadows()
        if target.read({ $0 === slot }), let first = slots.first(where: \.isIn) ?? slots.first { aim(at: first) }
        do { try environment.records.write(record) } catch { Log.error("\(domain.name): \(error)") }
        Log.info("\(domain.name): its shadow on \(host) was taken away")
        showShadows()
        let family = family, rest = slots
        // Not here: a host that does not answer must not keep a failover waiting.
        startThread("shadow-away") { [self] in
            reply.give(.success(discard(slot, deleteReplica: deleteReplica)))
            tell(rest, family)
        }
    }

    /// Removes a shadow. Returns what an administrator should know.
    func discard(_ slot: ShadowSlot, deleteReplica: Bool) -> [String] {
        do {
            // What was there before its host was lost, when nothing took its place.
            if let former = slot.former {
                _ = try slot.client.ask(PeerRequest(.discard, host: environment.hostName, session: former, uuid: domain.uuid, domain: domain.name), timeoutMs: 20_000)
            }
            let answer = try slot.client.ask(PeerRequest(.discard, host: environment.hostName, session: slot.session, uuid: domain.uuid, domain: domain.name,
                                                         deleteReplica: deleteReplica ? true : nil), timeoutMs: 20_000)
            return answer.warnings ?? []
        } catch {
            Log.warning("\(domain.name): the shadow on \(slot.peer.name) could not be removed: \(error)")
            return deleteReplica ? ["The replicas on \(slot.peer.name) stay: \(error)"] : []
        }
    }

    private func tell(_ slots: [ShadowSlot], _ family: ShadowFamily) {
        for slot in slots where slot.isIn {
            var request = PeerRequest(.family, host: environment.hostName, session: slot.session, uuid: domain.uuid, domain: domain.name)
            request.family = family
            do { _ = try slot.client.ask(request) } catch { Log.warning("\(domain.name): \(slot.peer.name) was not told of its siblings: \(error)") }
        }
    }

    // MARK: Who takes over

    /// Exactly one host may become the guest's: the first that asks, ourselves included when we are about to order one. True: `host` is it.
    func claim(_ host: String) -> Bool {
        claimant.change { claimant in
            guard claimant == nil || claimant == host else { return false }
            claimant = host
            return true
        }
    }

    func giveBackClaim(_ host: String) { claimant.change { if $0.map({ HostName.isSame($0, host) }) == true { $0 = nil } } }
}
