import ControlProtocol
import Platform
import Replication

/// What happened to the protections of this host since the service began, counted. A protection that begins anew goes on counting.
public final class Tallies: Sendable {
    struct Key: Hashable {
        var uuid: String
        var role: Role
        var peer: String
    }

    private struct Tally {
        var swaps: UInt64 = 0, failovers: UInt64 = 0, failures: UInt64 = 0, resyncs: UInt64 = 0
        var exposedMs = 0.0
        var exposedSince: MonotonicTime?
    }

    enum Count { case swap, failover, failure, resync }

    /// Guests come and go for months; one that was not looked at for so many others begins at 0.
    private static let most = 4096
    private let tallies = Guarded<[Key: Tally]>([:])

    public init() {}

    private func change(_ key: Key, _ body: (inout Tally) -> Void) {
        tallies.change { tallies in
            if tallies[key] == nil, tallies.count >= Self.most, let other = tallies.keys.first { tallies[other] = nil }
            body(&tallies[key, default: Tally()])
        }
    }

    func count(_ what: Count, _ key: Key) {
        change(key) { tally in
            switch what {
            case .swap: tally.swaps += 1
            case .failover: tally.failovers += 1
            case .failure: tally.failures += 1
            case .resync: tally.resyncs += 1
            }
        }
    }

    /// Whether the guest runs without a shadow that follows.
    func setExposed(_ isExposed: Bool, _ key: Key) {
        let now = MonotonicTime.now
        change(key) { tally in
            if let since = tally.exposedSince { tally.exposedMs += now.milliseconds(since: since) }
            tally.exposedSince = isExposed ? now : nil
        }
    }

    /// The status with its counts filled in.
    func adding(_ status: DomainStatus) -> DomainStatus {
        var status = status
        var counters = status.counters ?? ProtectionCounters()
        let tally = tallies.read { $0[Key(uuid: status.uuid, role: status.role, peer: status.peer)] } ?? Tally()
        (counters.swaps, counters.failovers, counters.failures, counters.resyncs) = (tally.swaps, tally.failovers, tally.failures, tally.resyncs)
        counters.degradedSeconds = (tally.exposedMs + (tally.exposedSince.map { MonotonicTime.now.milliseconds(since: $0) } ?? 0)).rounded() / 1000
        status.counters = counters
        return status
    }
}

extension ProtectionCounters {
    /// What a worker counts.
    init(_ statistics: SharedStatistics) {
        self.init()
        epochsCaptured = statistics[.epochsTotal]
        pauses = statistics[.pauseCount]
        pauseMsTotal = Double(statistics[.pauseMicrosecondsTotal]) / 1000
        bytesResent = statistics[.bytesResent]
    }
}
