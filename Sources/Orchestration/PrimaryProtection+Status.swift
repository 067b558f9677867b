import Configuration
import ControlProtocol
import Platform
import Replication

/// How it stands, for `status` and for whoever waits for its beginning.
extension PrimaryProtection {
    /// How a fresh protection turned out.
    public enum Settled: Sendable {
        case protected
        /// The first attempt failed; without an order the protection would go on trying.
        case refused(String)
        case ended(String)
    }

    /// The hosts of its shadows, for a sentence.
    public var peerName: String { slots.map(\.peer.name).joined(separator: " and ") }
    public var warnings: [String] { remarks.read { $0 } }

    /// How many shadows it has on other hosts than these.
    public func slots(besides hosts: [String]) -> Int { slots.filter { slot in !hosts.contains { HostName.isSame($0, slot.peer.name) } }.count }

    /// Waits until it is clear how the protection to these hosts, ordered at `begin`, turned out; nil at the deadline.
    public func settled(_ hosts: [String], since begin: MonotonicTime, until deadline: MonotonicTime) -> Settled? {
        if slots.count > 1, isOver.read({ $0 }) == nil, firstFailure.read({ $0 }) == nil, board.state != .failedOver {
            return shadowsSettled(hosts, since: begin, until: deadline)
        }
        return settled(until: deadline)
    }

    /// Waits until it is clear how the protection began; nil at the deadline.
    public func settled(until deadline: MonotonicTime) -> Settled? {
        let state = board.wait(for: [.protected, .degraded, .failedOver, .suspended], until: deadline)
        if let reason = firstFailure.read({ $0 }) { return .refused(reason) }
        if let reason = isOver.read({ $0 }), !reason.isEmpty { return .ended(reason) }
        return switch state {
        case .protected, .suspended: .protected
        case .failedOver: .ended("the guest runs on \(peer.name)")
        case .degraded, .syncing, .swapping, .inDoubt, nil: nil
        }
    }

    public var status: DomainStatus {
        var status = figures
        if status.state != .failedOver { status.shadows = slots.map { $0.status(worker?.statistics, domain: status) } }
        return status
    }

    private var figures: DomainStatus {
        let now = board.current
        var status = DomainStatus(domain: domain.name, uuid: domain.uuid, role: .primary, peer: peer.name, engine: record.engine.rawValue, state: now.state,
                                  reason: now.reason, since: now.since, configuredIntervalMs: record.intervalMs)
        status.engineReason = record.engineReason
        guard let statistics = worker?.statistics else { return status }
        status.fill(from: statistics)
        status.epochsPerSecond = rate.perSecond
        explainInterval(&status)
        if let disks = currentDisks.read({ $0 }) {
            status.disks = disks.status
            status.diskBytesSent = statistics[.diskBytesSent]
            status.diskWrites = statistics[.diskWrites]
            if disks.stage == .copying { (status.syncBytesDone, status.syncBytesTotal) = disks.progress }
        }
        return status
    }
}
