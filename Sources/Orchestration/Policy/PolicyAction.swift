import Configuration
import ControlProtocol
import Libvirt
import Platform

/// One look at one domain: what its policy asks for, what there is, and the next step between the two.
struct PolicyAction {
    let registry: Registry
    let keeper: PolicyKeeper
    let uuid: String
    private static let settleEveryMs = 200.0
    private static let unprotectMs = 60_000.0

    func run() throws -> PolicyKeeper.Step {
        do {
            return try step()
        } catch let error as LibvirtError where error.isNoDomain {
            // Gone before or while it was looked at.
            return .done
        }
    }

    private func step() throws -> PolicyKeeper.Step {
        // A shadow is its primary's business.
        if let shadow = registry.shadow(uuid), shadow.phase != .running { return .done }
        guard registry.migrations.read({ $0[uuid] == nil }) else { return .again(milliseconds: 2000) }
        let domain = try registry.environment.connect().lookup(uuid: uuid)
        keeper.change(uuid) { $0.name = domain.name }
        guard try domain.isActive() else { return .done }
        let store = PolicyStore(domain: domain)
        try store.reconcile()
        let policy = try store.read()
        if let policy { keeper.change(uuid) { $0.engine = policy.engine.rawValue } }
        if let protection = registry.primary(uuid), protection.board.state != .failedOver { return try follow(protection, policy, domain) }
        guard let policy, policy.isEnabled, try isReady(domain) else { return .done }
        return try begin(policy, domain)
    }

    // MARK: Without a shadow

    /// False: nothing can be done before an event tells of a change.
    private func isReady(_ domain: Domain) throws -> Bool {
        let (state, reason) = try domain.state()
        switch state {
        case .running: break
        // Started paused, suspended, about to come or to go: a resume tells when it runs.
        case .paused: return false
        default: return false
        }
        guard reason != RunningReason.postcopy.rawValue else { throw ControlFailure("Its memory is still on its way here") }
        try MigrationChecks.checkIdle(domain)
        return true
    }

    private func begin(_ policy: DomainPolicy, _ domain: Domain) throws -> PolicyKeeper.Step {
        let request = ProtectRequest(policy)
        try PolicyCheck.criticalDisks(policy, domain, registry.environment)
        let hosts = try Placement(environment: registry.environment).choose(policy.shadows, domain, policy: policy, request, excluded: keeper.excluded(uuid))
        // A command may have come in between.
        guard registry.primary(uuid).map({ $0.board.state == .failedOver }) ?? true else { return .again(milliseconds: Self.settleEveryMs) }
        Log.info("\(domain.name): its policy asks for a shadow; it goes to \(hosts.joined(separator: " and "))")
        keeper.change(uuid) { $0.isBeginning = true }
        do {
            _ = try registry.protect(uuid, to: hosts.map { ShadowChoice(host: $0) }, demandsAll: false, arePlaced: true, request)
        } catch {
            // It said no, or it is not there: another one may do.
            for host in hosts { keeper.suspect(uuid, host, "\(error)") }
            throw error
        }
        return .again(milliseconds: Self.settleEveryMs)
    }

    // MARK: With one

    private func follow(_ protection: PrimaryProtection, _ policy: DomainPolicy?, _ domain: Domain) throws -> PolicyKeeper.Step {
        // Between two hosts nobody meddles.
        switch protection.board.state {
        case .swapping, .inDoubt: return .again(milliseconds: 2000)
        default: break
        }
        guard let policy, policy.isEnabled else {
            keeper.noteWanted(uuid, nil)
            // Taken away, not turned off: what was begun goes on.
            guard policy != nil else { return .done }
            try end(protection, "its policy is off")
            return .done
        }
        if keeper.entry(uuid).isBeginning, let step = try beginning(protection) { return step }
        if let host = keeper.entry(uuid).leaves {
            if protection.slot(host) != nil { return try leave(host, protection, policy, domain) }
            keeper.change(uuid) { $0.leaves = nil }
        }
        guard let difference = protection.difference(from: policy) else { return try complete(protection, policy, domain) }
        try end(protection, "its policy has changed (\(difference)): it begins anew")
        return .again(milliseconds: 0)
    }

    /// Nil: it has begun well.
    private func beginning(_ protection: PrimaryProtection) throws -> PolicyKeeper.Step? {
        switch protection.settled(until: .now) {
        case .protected:
            keeper.change(uuid) { entry in
                (entry.isBeginning, entry.reason, entry.failures) = (false, nil, 0)
            }
            return nil
        case .refused(let reason):
            for slot in protection.slots { keeper.suspect(uuid, slot.peer.name, reason) }
            try end(protection, "it could not be protected to \(protection.peerName)")
            throw ControlFailure("\(protection.peerName): \(reason)")
        case .ended(let reason):
            throw ControlFailure("Its protection ended before it began: \(reason)")
        case nil:
            return .again(milliseconds: Self.settleEveryMs)
        }
    }

    /// The shadow's host is being emptied. Not before another one is known that takes it.
    private func leave(_ old: String, _ protection: PrimaryProtection, _ policy: DomainPolicy, _ domain: Domain) throws -> PolicyKeeper.Step {
        guard protection.keptSlots.count == 1 else {
            // The others go on without a break.
            Log.info("\(domain.name): \(old) is being drained; its shadow there goes")
            _ = try registry.unprotect(uuid, from: old, deleteReplica: false, deadline: MonotonicTime.now.adding(milliseconds: Self.unprotectMs))
            return .again(milliseconds: 0)
        }
        let host = try Placement(environment: registry.environment).choose(domain, policy: policy, ProtectRequest(policy), excluded: [old: "The shadow is to leave it"])
        try end(protection, "\(old) is being drained; its shadow goes to \(host)")
        return try begin(policy, domain)
    }

    private func end(_ protection: PrimaryProtection, _ why: String) throws {
        Log.info("\(protection.domain.name): \(why)")
        try registry.unprotect(uuid, deadline: MonotonicTime.now.adding(milliseconds: Self.unprotectMs))
    }
}

/// What a policy says about the domain that it belongs to.
enum PolicyCheck {
    /// Throws when a disk that the guest is worth nothing without would not be part of the epochs.
    static func criticalDisks(_ policy: DomainPolicy, _ domain: Domain, _ environment: HostEnvironment) throws {
        guard !policy.criticalDisks.isEmpty else { return }
        let plan = try DiskPlan.make(domain, DomainDefinition(xml: domain.xml(flags: [.secure])), ownFolders: environment.ownFolders)
        guard let missing = policy.criticalDisks.first(where: { target in !plan.replicas.contains { $0.target == target } }) else { return }
        throw ControlFailure("Disk \(missing) of \(domain.name) is critical by its policy, and would not be copied (\(plan.shared.contains(missing) ? "it lies on shared storage" : "the domain has no such writable disk"))",
                             advice: "Correct the policy: `shadow-virt policy \(domain.name) set --critical-disks ...`")
    }
}

extension PrimaryProtection {
    /// In what it is not as the policy has it; nil when it is.
    func difference(from policy: DomainPolicy) -> String? {
        if policy.engine != .auto, policy.engine.rawValue != record.engine.rawValue { return "engine \(policy.engine.rawValue)" }
        if let interval = policy.intervalMs, interval != record.intervalMs { return "interval \(interval) ms" }
        if policy.withoutDisks != record.withoutDisks { return policy.withoutDisks ? "without disks" : "with disks" }
        if policy.onFailure != record.onFailure ?? .leave { return "on failure: \(policy.onFailure.rawValue)" }
        if (policy.lifetime == .ghost) != (record.isGhost == true) { return "lifetime \(policy.lifetime.rawValue)" }
        if policy.pool != record.pool { return "pool" }
        if !policy.hosts.isEmpty, !slots.contains(where: { slot in policy.hosts.contains { HostName.isSame($0, slot.peer.name) } }) { return "hosts" }
        return nil
    }
}

extension ProtectRequest {
    init(_ policy: DomainPolicy) {
        self.init(intervalMs: policy.intervalMs, withoutDisks: policy.withoutDisks)
        pool = policy.pool
        diskRateBytesPerSecond = policy.diskRateBytesPerSecond
        onFailure = policy.onFailure
        engine = policy.engine
        isGhost = policy.lifetime == .ghost
    }
}

extension DomainPolicy {
    /// Takes over how `protect` was told to protect.
    mutating func take(_ request: ProtectRequest) {
        isEnabled = true
        lifetime = request.isGhost ? .ghost : .permanent
        engine = request.engine
        intervalMs = request.intervalMs
        withoutDisks = request.withoutDisks
        pool = request.pool
        diskRateBytesPerSecond = request.diskRateBytesPerSecond
        onFailure = request.onFailure
        if withoutDisks { criticalDisks = [] }
    }
}
