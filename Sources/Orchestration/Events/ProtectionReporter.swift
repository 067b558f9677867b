import ControlProtocol
import Platform

/// What made a protection's state change, where the state alone does not tell.
enum StateCause: Sendable {
    /// The guest's QEMU, or its host, is dead or given up.
    case failover
    /// The connection to the other host broke.
    case peerLost
}

/// Turns the states of one protection into events and counts. Called by its board, for each change once.
///
/// What fails is tried again every few seconds, for days if need be: from the first failure to the next `protected` only another reason is
/// news, so that the journal is not full of one story.
final class ProtectionReporter: Sendable {
    private struct Story {
        var hasBegun = false
        var wasProtected = false
        /// Why it does not follow.
        var trouble: String?
        var failures = 0
        var isFailover = false
        var isPeerLost = false
        /// For the event that ends the hand-over.
        var handover: [String: String] = [:]
    }

    private let domain: String
    private let key: Tallies.Key
    private let events: EventJournal
    private let tallies: Tallies
    private let story = Guarded(Story())

    init(domain: String, uuid: String, role: Role, peer: String, environment: HostEnvironment) {
        self.domain = domain
        key = Tallies.Key(uuid: uuid, role: role, peer: peer)
        events = environment.events
        tallies = environment.tallies
    }

    private func record(_ kind: EventKind, _ message: String, _ details: [String: String] = [:]) {
        // Reasons of a state stand behind a colon elsewhere.
        events.record(kind: kind, domain: domain, uuid: key.uuid, message: message.prefix(1).uppercased() + message.dropFirst(),
                      details: details.merging(["role": key.role.rawValue, "peer": key.peer]) { mine, _ in mine })
    }

    /// The board shows `new` instead of `old`, or another reason for it.
    func changed(from old: ProtectionState, to new: ProtectionState, _ reason: String, _ cause: StateCause?) {
        switch new {
        case .syncing: syncing(reason)
        case .protected where old == .protected: shadowsChanged(reason)
        case .protected: isProtected(from: old)
        case .degraded: degraded(reason, cause)
        case .suspended where old != .suspended: record(.suspended, reason)
        case .swapping where old != .swapping: beginHandover(reason, cause)
        case .inDoubt where old != .inDoubt: record(.inDoubt, reason)
        case .failedOver where old != .failedOver: endHandover(from: old, reason, cause)
        case .suspended, .swapping, .inDoubt, .failedOver: break
        }
        let wasProtected = story.read { $0.wasProtected }
        tallies.setExposed(new == .degraded || new == .syncing && wasProtected, key)
    }

    private func syncing(_ reason: String) {
        let (isFirst, isQuiet) = story.change { story in
            defer { story.hasBegun = true }
            return (!story.hasBegun, story.trouble != nil || story.wasProtected)
        }
        if isFirst {
            record(.began, "Protecting \(domain) to \(key.peer): \(reason)")
        } else if !isQuiet {
            record(.firstCopy, reason)
        }
    }

    private func isProtected(from old: ProtectionState) {
        let before = story.change { story in
            defer { (story.wasProtected, story.trouble, story.failures, story.isFailover, story.isPeerLost) = (true, nil, 0, false, false) }
            return story
        }
        if old == .suspended, before.trouble == nil { return record(.resumed, "The guest was resumed; the shadow follows") }
        if before.isPeerLost { record(.peerBack, "The connection to \(key.peer) is back") }
        if before.wasProtected, !before.isPeerLost, before.trouble != nil { tallies.count(.resync, key) }
        record(.protected, "The shadow on \(key.peer) holds a complete epoch and follows", before.failures > 0 ? ["failed_attempts": "\(before.failures)"] : [:])
    }

    /// One of several shadows comes or goes; the guest is protected all the while.
    private func shadowsChanged(_ reason: String) {
        if reason.isEmpty { record(.protected, "All shadows follow") } else { record(.degraded, reason) }
    }

    private func degraded(_ reason: String, _ cause: StateCause?) {
        let (isNew, isNews) = story.change { story in
            defer {
                story.trouble = reason
                story.failures += 1
                story.isPeerLost = story.isPeerLost || cause == .peerLost
            }
            // How a lost peer is missed changes with each attempt to reach it.
            return (story.trouble == nil, story.trouble != reason && !(story.isPeerLost && cause == .peerLost))
        }
        if isNew { tallies.count(.failure, key) }
        if isNews { record(cause == .peerLost ? .peerLost : .degraded, reason) }
    }

    private func beginHandover(_ reason: String, _ cause: StateCause?) {
        // The shadow's side is told how it ends only.
        guard key.role == .primary else { return }
        let isFailover = story.change { story in
            story.isFailover = story.isFailover || cause == .failover
            return story.isFailover
        }
        record(isFailover ? .failoverBegan : .swapBegan, reason.isEmpty ? "Handing \(domain) over to \(key.peer)" : reason)
    }

    private func endHandover(from old: ProtectionState, _ reason: String, _ cause: StateCause?) {
        let (isFailover, details) = story.change { story in
            defer { story.handover = [:] }
            return (story.isFailover || cause == .failover, story.handover)
        }
        guard key.role == .primary else {
            if isFailover { tallies.count(.failover, key) }
            return record(isFailover ? .failover : .activated, reason, details)
        }
        // Without a word of it before, the other side took the guest over by force.
        let isSwap = !isFailover && (old == .swapping || old == .inDoubt)
        tallies.count(isSwap ? .swap : .failover, key)
        record(isSwap ? .swap : .failover, reason, details)
    }

    // MARK: What no state tells

    /// Figures of the hand-over that is about to end.
    func noteHandover(_ figures: [String: String]) { story.change { $0.handover = figures } }

    /// (shadow) The primary's worker has connected.
    func linked() {
        let (isFirst, isBack) = story.change { story in
            defer { (story.hasBegun, story.wasProtected, story.isPeerLost, story.trouble) = (true, true, false, nil) }
            return (!story.hasBegun, story.isPeerLost)
        }
        if isFirst { record(.began, "Holding the shadow of \(domain) for \(key.peer)") }
        if isBack { record(.peerBack, "The connection to \(key.peer) is back") }
        tallies.setExposed(false, key)
    }

    /// The protection is over, and the guest, if it runs, runs without.
    func ended(_ reason: String) {
        tallies.setExposed(false, key)
        record(.unprotected, "Protection ended: \(reason)")
    }
}

extension HandoverReport {
    /// For the event that tells of it.
    var figures: [String: String] {
        var figures = ["epoch": "\(epoch)", "outage_ms": "\(Int(outageMs.rounded()))", "activation_ms": "\(Int(activationMs.rounded()))"]
        if let epochsLost { figures["epochs_lost"] = "\(epochsLost)" }
        return figures
    }
}
