import Configuration
import ControlProtocol
import Foundation
import Libvirt
import Platform
import Replication

/// Several shadows of one guest: adding, taking away, and protecting anew from where it went.
extension Registry {
    func makeSlots(_ hosts: [ShadowChoice]) throws -> [ShadowSlot] {
        guard !hosts.isEmpty, hosts.count <= SharedStatistics.mostPeers else {
            throw ControlFailure("A guest can have 1 to \(SharedStatistics.mostPeers) shadows, not \(hosts.count)")
        }
        if let twice = hosts.first(where: { host in hosts.filter { HostName.isSame($0.host, host.host) }.count > 1 }) {
            throw ControlFailure("Host \(twice.host) is named twice", advice: "One shadow on each host")
        }
        return try hosts.map { choice in
            guard ShadowChoice.multipleRange.contains(choice.multiple) else {
                throw ControlFailure("A shadow that commits every \(choice.multiple)th epoch cannot be had", advice: "Use 1 to \(ShadowChoice.multipleRange.upperBound)")
            }
            return ShadowSlot(ShadowEntry(peer: choice.host, session: UUID(), multiple: choice.multiple), peer: try environment.peer(choice.host), environment: environment)
        }
    }

    /// Adds shadows to a protection that is under way; nil: it is over, or has all of them.
    func add(_ slots: [ShadowSlot], to known: PrimaryProtection, arePlaced: Bool = false, _ request: ProtectRequest) throws -> PrimaryProtection? {
        let fresh = slots.filter { known.slot($0.peer.name) == nil }
        guard known.board.state != .failedOver, !fresh.isEmpty else { return nil }
        let domain = try lookup(known.domain.uuid)
        guard known.slots.count + fresh.count <= SharedStatistics.mostPeers else {
            throw ControlFailure("Domain \(domain.name) has \(known.slots.count) shadows; \(SharedStatistics.mostPeers) are the most")
        }
        var asked = known.record.request
        asked.discardStale = request.discardStale
        for slot in fresh where !arePlaced {
            if let failed = try Doctor(environment: environment).check(domain: domain, peer: slot.peer, asked).findings.first(where: { $0.verdict == .failed }) {
                throw ControlFailure("Cannot protect \(domain.name) to \(slot.peer.name): \(failed.detail)", advice: failed.advice)
            }
        }
        let reply = Reply<Void>()
        known.post(.addShadows(fresh, reply))
        try reply.wait(until: MonotonicTime.now.adding(milliseconds: 30_000))
        return known
    }

    /// Checks the guest against each of the hosts. Without `demandsAll` one that can have it is enough.
    /// `arePlaced`: they have just been asked; each question to a host takes some 50 ms of the time that a guest runs without a shadow.
    func check(_ domain: Domain, _ slots: [ShadowSlot], demandsAll: Bool, arePlaced: Bool = false, _ request: ProtectRequest) throws -> (findings: [Finding], engine: EngineDecision) {
        var found: (findings: [Finding], engine: EngineDecision)?
        var refusal: ControlFailure?
        for slot in slots {
            if let problem = environment.marks.refusal(slot.peer.name) {
                refusal = refusal ?? problem
                continue
            }
            // What is about this host alone is the same for all of them.
            if arePlaced, found != nil { continue }
            let (findings, engine) = try Doctor(environment: environment).check(domain: domain, peer: arePlaced ? nil : slot.peer, request)
            if let failed = findings.first(where: { $0.verdict == .failed }) {
                refusal = refusal ?? ControlFailure("Cannot protect \(domain.name): \(failed.detail)", advice: failed.advice)
            } else if let engine {
                found = (((found?.findings ?? []) + findings), engine)
            }
        }
        if let refusal, demandsAll || found == nil { throw refusal }
        guard let found else { throw ControlFailure("Cannot protect \(domain.name): no engine was chosen for it") }
        return found
    }

    /// Takes one shadow away; the last one ends the protection. Returns what an administrator should know.
    public func unprotect(_ word: String, from host: String, deleteReplica: Bool, deadline: MonotonicTime) throws -> [String] {
        let protection = try primaryNamed(word)
        guard protection.slot(host) != nil else {
            throw ControlFailure("Domain \(protection.domain.name) has no shadow on \(host)", advice: "It has on \(protection.peerName)")
        }
        guard protection.slots.count > 1 else { return try unprotect(word, deleteReplica: deleteReplica, deadline: deadline) }
        let reply = Reply<[String]>()
        protection.post(.removeShadow(host, deleteReplica: deleteReplica, reply))
        return try reply.wait(until: deadline)
    }

    /// Whether the domain is protected from here with a shadow on that host.
    public func hasShadow(_ word: String, on host: String) -> Bool {
        guard let protection = try? primaryNamed(word) else { return false }
        return protection.board.state != .failedOver && protection.slot(host) != nil
    }

    // MARK: After a hand-over

    private static let mostTries = 40

    /// The guest runs here now: its other shadows follow from here, as far as their hosts are among this one's peers.
    func reattach(_ shadow: ShadowProtection) {
        guard let family = shadow.takeFamily() else { return }
        let others = family.others(than: environment.hostName)
        let known = others.filter { environment.configuration.peer(named: $0.host) != nil }
        if let stranger = others.first(where: { other in !known.contains(other) }) {
            Log.warning("\(shadow.name): its shadow on \(stranger.host) cannot follow from here: add \(stranger.host) to `peers` in \(environment.configuration.file), then `shadow-virt protect \(shadow.name) --to \(stranger.host)`")
        }
        guard !known.isEmpty else { return }
        startThread("re-attach") { [self] in
            shadow.awaitSettled()
            var pauseMs = 250.0
            for _ in 1...Self.mostTries {
                // Ended, protected by hand, or gone on meanwhile.
                guard primary(shadow.uuid) == nil, self.shadow(shadow.uuid).map({ $0 === shadow }) ?? true,
                      (try? environment.connect().lookup(uuid: shadow.uuid).isActive()) != false else { return }
                do {
                    _ = try protect(shadow.uuid, to: known, demandsAll: false, family.request)
                    return Log.info("\(shadow.name): protected from here to \(known.map(\.host).joined(separator: ", "))")
                } catch {
                    Log.warning("\(shadow.name): not protected from here yet: \(error)")
                }
                usleep(UInt32(pauseMs * 1000))
                pauseMs = min(pauseMs * 2, 60_000)
            }
        }
    }
}
