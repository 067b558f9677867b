import ControlProtocol
import Libvirt
import Platform

/// Shadows that a policy asks for and that are not there: no host suited when the protection began, a host was down or is gone for good, or was drained.
extension PolicyAction {
    /// A first copy is under way, or the guest is suspended: nothing can be added now.
    private static let busyMs = 5000.0

    func complete(_ protection: PrimaryProtection, _ policy: DomainPolicy, _ domain: Domain) throws -> PolicyKeeper.Step {
        keeper.noteWanted(uuid, policy.shadows)
        let kept = protection.keptSlots
        let lost = kept.filter { $0.isLost(afterMs: registry.environment.replaceAfterMs) }
        let present = kept.filter { slot in !lost.contains { $0 === slot } }
        guard present.count < policy.shadows else { return .done }
        switch protection.board.state {
        case .protected: break
        // With none that follows there is no first copy to wait for, unless it is under way.
        case .degraded where present.isEmpty: break
        default: return .again(milliseconds: Self.busyMs)
        }
        return try add(policy.shadows - present.count, to: protection, lost, policy, domain)
    }

    private func add(_ count: Int, to protection: PrimaryProtection, _ lost: [ShadowSlot], _ policy: DomainPolicy, _ domain: Domain) throws -> PolicyKeeper.Step {
        let request = ProtectRequest(policy)
        var excluded = keeper.excluded(uuid)
        for slot in protection.slots {
            let isLost = slot.isReplaced || lost.contains { $0 === slot }
            excluded[slot.peer.name] = isLost ? "The shadow there is lost" : "It holds a shadow of this guest already"
        }
        var short = Shortage(wanted: policy.shadows, present: policy.shadows - count, reason: lost.first.map { "\($0.peer.name): \($0.board.current.reason)" } ?? "")
        let hosts: [String]
        do {
            hosts = try Placement(environment: registry.environment).choose(count, domain, policy: policy, request, excluded: excluded)
        } catch let failure as ControlFailure {
            short.reason = failure.message
            return .short(short)
        }
        // The keeper's holds keep commands away, not what the guest does.
        guard registry.primary(uuid) === protection, [.protected, .degraded].contains(protection.board.state) else { return .again(milliseconds: Self.busyMs) }
        // Lost ones stay known: the guest may run there by an administrator's order. They are taken away once their hosts answer.
        for slot in lost { slot.setReplaced(true) }
        do {
            _ = try registry.protect(uuid, to: hosts.map { ShadowChoice(host: $0) }, demandsAll: false, arePlaced: true, request)
        } catch {
            for slot in lost { slot.setReplaced(false) }
            for host in hosts { keeper.suspect(uuid, host, "\(error)") }
            short.reason = "\(error)"
            return .short(short)
        }
        keeper.change(uuid) { ($0.shortage, $0.failures) = (nil, 0) }
        let message = "\(domain.name): its policy asks for \(policy.shadows) shadows and it has \(policy.shadows - count); a new one goes to \(hosts.joined(separator: " and "))"
        Log.info(message)
        registry.environment.events.record(kind: .shadowAdded, domain: domain.name, uuid: uuid, message: "A shadow that its policy asks for goes to \(hosts.joined(separator: " and "))",
                                           details: ["wanted": "\(policy.shadows)", "present": "\(policy.shadows - count)"])
        return .again(milliseconds: Self.busyMs)
    }
}

extension PrimaryProtection {
    /// The host of an absent shadow answers again. One whose place another has taken goes: there would be more than were asked for.
    func shadowAnswers(_ slot: ShadowSlot) {
        guard slot.isReplaced, slots.contains(where: { $0 !== slot && $0.isIn }) else { return post(.shadowIsBack(slot.peer.name)) }
        post(.removeShadow(slot.peer.name, deleteReplica: record.isGhost == true, Reply()))
    }
}

extension HostEnvironment {
    /// Milliseconds after which a shadow that does not follow counts as lost; nil: never.
    var replaceAfterMs: Double? {
        let seconds = configuration.replaceAfter
        return seconds > 0 ? Double(seconds) * 1000 : nil
    }
}
