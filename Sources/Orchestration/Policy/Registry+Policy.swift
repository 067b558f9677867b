import Configuration
import ControlProtocol
import Foundation
import Libvirt
import Platform
import Replication

/// `policy` and `placement`, and what `protect` and `unprotect` do about policies.
extension Registry {
    public func policy(_ word: String, _ request: PolicyRequest) throws -> PolicyReport {
        let domain = try lookup(word)
        if let shadow = shadow(domain.uuid), shadow.phase != .running {
            throw ControlFailure("\(environment.hostName) holds the shadow of \(domain.name); its policy is its primary's", advice: "Run the command on \(shadow.primary)")
        }
        let store = PolicyStore(domain: domain)
        switch request.action {
        case .get:
            let text = try store.text()
            return PolicyReport(domain: domain.name, uuid: domain.uuid, policy: try text.map { text throws in try DomainPolicy(xml: text) }, xml: text)
        case .set:
            let policy = try request.xml.map { text throws in try DomainPolicy(xml: text) } ?? request.policy ?? DomainPolicy()
            try check(policy)
            try store.write(policy)
            keeper.policyChanged(domain.uuid)
            return PolicyReport(domain: domain.name, uuid: domain.uuid, policy: policy, xml: policy.xml)
        case .clear:
            try store.write(text: nil)
            return PolicyReport(domain: domain.name, uuid: domain.uuid, policy: nil, xml: nil)
        }
    }

    private func check(_ policy: DomainPolicy) throws {
        if let problem = policy.problem { throw problem }
        let known = [environment.hostName] + environment.configuration.peers.map(\.name)
        if let stranger = policy.hosts.first(where: { host in !known.contains { HostName.isSame($0, host) } }) { _ = try environment.peer(stranger) }
        if policy.shadows > Self.mostShadows {
            throw ControlFailure("A policy with \(policy.shadows) shadows cannot be kept: this release keeps \(Self.mostShadows)", advice: "Use shadows='\(Self.mostShadows)'")
        }
    }

    /// Shadows that one guest can have.
    static let mostShadows = SharedStatistics.mostPeers

    // MARK: Placement

    /// Where the domain's shadow would go, by its policy if it has one.
    public func placement(_ word: String) throws -> PlacementReport {
        let domain = try lookup(word)
        if let shadow = shadow(domain.uuid), shadow.phase != .running {
            throw ControlFailure("\(environment.hostName) holds the shadow of \(domain.name); the guest runs on \(shadow.primary)", advice: "Run the command on \(shadow.primary)")
        }
        let policy = try PolicyStore(domain: domain).read() ?? DomainPolicy()
        return try Placement(environment: environment).report(domain, policy: policy, ProtectRequest(policy), excluded: keeper.excluded(domain.uuid))
    }

    /// The host for `protect`: the one that is named, else the one that suits best.
    public func host(for word: String, _ named: String?, _ request: ProtectRequest) throws -> String {
        if let named { return try environment.peer(named).name }
        let domain = try lookup(word)
        var policy = (try? PolicyStore(domain: domain).read()) ?? DomainPolicy()
        policy.take(request)
        return try Placement(environment: environment).choose(domain, policy: policy, request)
    }

    // MARK: protect, unprotect

    /// While `protect` works: its policy stands in the metadata before the shadow is made, so that it is part of what the shadow is made from. Nothing is
    /// done about it meanwhile.
    public final class Adoption {
        private let registry: Registry
        private let domain: Domain
        private let before: String?
        private let isWritten: Bool
        /// The domain's name, whatever it was asked for by.
        public var name: String { domain.name }
        /// What is asked for is there already, by the policy.
        public let kept: PrimaryProtection?

        fileprivate init(_ registry: Registry, _ domain: Domain, before: String?, isWritten: Bool, kept: PrimaryProtection? = nil) {
            (self.registry, self.domain, self.before, self.isWritten, self.kept) = (registry, domain, before, isWritten, kept)
        }

        /// The protection did not come about: the policy is again what it was.
        public func undo() {
            guard isWritten else { return }
            do { try PolicyStore(domain: domain).write(text: before) } catch { Log.warning("\(domain.name): its policy could not be put back: \(error)") }
        }

        deinit { registry.keeper.release(domain.uuid) }
    }

    /// - Parameter hosts: those that the administrator named; the policy then is about them and this one. Empty: all that suit.
    public func adoptPolicy(_ word: String, hosts: [String], _ request: ProtectRequest, writes: Bool) throws -> Adoption {
        let domain = try lookup(word)
        keeper.hold(domain.uuid)
        do {
            let store = PolicyStore(domain: domain)
            let before = try store.text()
            if let kept = kept(domain, before, hosts: hosts, request) { return Adoption(self, domain, before: before, isWritten: false, kept: kept) }
            if writes, let protection = primary(domain.uuid), protection.board.state != .failedOver, var policy = before.flatMap({ try? DomainPolicy(xml: $0) }), policy.isEnabled {
                // More shadows of one that is protected already.
                let fresh = hosts.filter { protection.slot($0) == nil }
                policy.shadows = protection.keptSlots.count + fresh.count
                if !policy.hosts.isEmpty { policy.hosts += fresh.filter { host in !policy.hosts.contains { HostName.isSame($0, host) } } }
                try store.write(policy)
                return Adoption(self, domain, before: before, isWritten: true)
            }
            guard writes, primary(domain.uuid).map({ $0.board.state == .failedOver }) ?? true, shadow(domain.uuid).map({ $0.phase == .running }) ?? true else {
                return Adoption(self, domain, before: before, isWritten: false)
            }
            var policy = before.flatMap { try? DomainPolicy(xml: $0) } ?? DomainPolicy()
            policy.take(request)
            policy.hosts = hosts.isEmpty ? [] : [environment.hostName] + hosts
            policy.shadows = max(1, hosts.count)
            try store.write(policy)
            return Adoption(self, domain, before: before, isWritten: true)
        } catch {
            keeper.release(domain.uuid)
            throw error
        }
    }

    /// A protection that stands under a policy and is what `protect` asks for: that is no error then, the service was merely quicker.
    private func kept(_ domain: Domain, _ policy: String?, hosts: [String], _ request: ProtectRequest) -> PrimaryProtection? {
        guard let protection = primary(domain.uuid), protection.board.state != .failedOver, let current = policy.flatMap({ try? DomainPolicy(xml: $0) }), current.isEnabled,
              hosts.allSatisfy({ protection.slot($0) != nil }) else { return nil }
        var wanted = current
        wanted.take(request)
        return protection.difference(from: wanted) == nil ? protection : nil
    }

    /// `unprotect`: the policy is off first, so that what it asks for does not come back by itself.
    public func unprotectForGood(_ word: String, deleteReplica: Bool, deadline: MonotonicTime) throws -> [String] {
        guard let domain = try? lookup(word) else { return try unprotect(word, deleteReplica: deleteReplica, deadline: deadline) }
        keeper.hold(domain.uuid)
        defer { keeper.release(domain.uuid) }
        let isHere = primary(domain.uuid).map { $0.board.state != .failedOver } ?? true
        let before = isHere ? try switchOff(domain) : nil
        guard before == nil || primary(domain.uuid) != nil else { return ["It had no shadow; its policy is off now"] }
        do {
            return try unprotect(word, deleteReplica: deleteReplica, deadline: deadline)
        } catch {
            if let before { try? PolicyStore(domain: domain).write(text: before) }
            throw error
        }
    }

    /// One of several: the policy asks for one less, and not for that host any more. The only one: as `unprotectForGood`.
    public func unprotectForGood(_ word: String, from host: String, deleteReplica: Bool, deadline: MonotonicTime) throws -> [String] {
        let protection = try primaryNamed(word)
        guard let slot = protection.slot(host) else { return try unprotect(word, from: host, deleteReplica: deleteReplica, deadline: deadline) }
        guard protection.slots.count > 1 else { return try unprotectForGood(word, deleteReplica: deleteReplica, deadline: deadline) }
        let uuid = protection.domain.uuid
        keeper.hold(uuid)
        defer { keeper.release(uuid) }
        let store = PolicyStore(domain: try lookup(uuid))
        let before = try store.text()
        if let before, var policy = try? DomainPolicy(xml: before), policy.isEnabled {
            let left = protection.keptSlots.filter { $0 !== slot }.count
            policy.shadows = max(1, min(policy.shadows, left))
            policy.hosts.removeAll { HostName.isSame($0, host) }
            try store.write(policy)
        }
        do {
            return try unprotect(word, from: host, deleteReplica: deleteReplica, deadline: deadline)
        } catch {
            if let before { try? store.write(text: before) }
            throw error
        }
    }

    /// Returns the policy as it stood there; nil when there was none, or it was off. One that nobody understands stays: nothing is done about it anyway.
    private func switchOff(_ domain: Domain) throws -> String? {
        let store = PolicyStore(domain: domain)
        guard let before = try store.text(), var policy = try? DomainPolicy(xml: before), policy.isEnabled else { return nil }
        policy.isEnabled = false
        try store.write(policy)
        return before
    }

    // MARK: Peers

    /// A host that is being emptied asks for its shadow to be made elsewhere.
    func moveShadow(_ request: PeerRequest) throws -> PeerResponse {
        let uuid = (request.uuid ?? "").lowercased()
        guard let protection = primary(uuid), protection.board.state != .failedOver else { throw ControlFailure("\(environment.hostName) does not protect this domain") }
        // By the name that it has here, which is what placement and the keeper compare.
        guard let host = protection.slot(request.host)?.peer.name else { return PeerResponse() }
        let domain = try environment.connect().lookup(uuid: uuid)
        guard let policy = try PolicyStore(domain: domain).read(), policy.isEnabled else {
            throw ControlFailure("\(domain.name) has no policy, so nobody knows where its shadow may go instead",
                                 advice: "On \(environment.hostName): `shadow-virt unprotect \(domain.name)`, then `shadow-virt protect \(domain.name)`")
        }
        if let other = protection.keptSlots.first(where: { $0.peer.name != host }) {
            keeper.leave(uuid, host)
            return PeerResponse(state: other.peer.name)
        }
        let next = try Placement(environment: environment).choose(domain, policy: policy, ProtectRequest(policy), excluded: [host: "The shadow is to leave it"])
        keeper.leave(uuid, host)
        return PeerResponse(state: next)
    }
}
