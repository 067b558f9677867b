import ControlProtocol
import Foundation
import Platform
import Replication

extension DomainStatus {
    /// Figures from a worker's counters.
    mutating func fill(from statistics: SharedStatistics) {
        let now = MonotonicTime.now
        epoch = statistics[.epoch]
        committedEpoch = statistics[.committedEpoch]
        if statistics[.intervalMicroseconds] > 0 { intervalMs = Double(statistics[.intervalMicroseconds]) / 1000 }
        (pauseMsMedian, pauseMsP99) = statistics.pauseQuantiles()
        lagEpochs = epoch >= committedEpoch ? epoch - committedEpoch : 0
        lagBytes = lagEpochs > 0 ? statistics[.heldBytes] : 0
        if statistics[.lastCommitAt] > 0 {
            lastCommitAgeMs = now.milliseconds(since: MonotonicTime(nanoseconds: statistics[.lastCommitAt]))
        }
        if statistics[.lastCommitCaptured] > 0 {
            rpoMs = now.milliseconds(since: MonotonicTime(nanoseconds: statistics[.lastCommitCaptured]))
        }
        bytesDirtied = statistics[.pagesDirtied] * 4096
        bytesSent = statistics[.bytesSent]
        counters = ProtectionCounters(statistics)
        if state == .syncing, statistics[.syncBytesTotal] > 0 {
            syncBytesDone = min(statistics[.syncBytes], statistics[.syncBytesTotal])
            syncBytesTotal = statistics[.syncBytesTotal]
        }
    }
}

/// Events per second over the last few seconds, from a counter that is looked at now and then.
final class RateMeter: @unchecked Sendable {
    private let samples = Guarded<[(count: UInt64, at: MonotonicTime)]>([])
    /// Long enough to be steady, short enough to show a change.
    private static let windowMs = 5000.0

    func sample(_ count: UInt64) {
        let now = MonotonicTime.now
        samples.change { samples in
            if let last = samples.last, now.milliseconds(since: last.at) < 200 { return }
            if let last = samples.last, count < last.count { samples = [] }
            samples.append((count, now))
            while samples.count > 2, now.milliseconds(since: samples[0].at) > Self.windowMs { samples.removeFirst() }
        }
    }

    var perSecond: Double {
        samples.read { samples in
            guard let first = samples.first, let last = samples.last, last.at > first.at else { return 0 }
            return Double(last.count - first.count) / last.at.milliseconds(since: first.at) * 1000
        }
    }
}
