import ControlProtocol
import Platform
import Telemetry

/// KPIs of the epochs, from the workers' counters; they cost nothing.
struct ReplicationFigures {
    private var rates = RateTable()

    /// Names are equal on both sides for what both sides count.
    mutating func values(_ status: DomainStatus, at now: MonotonicTime) -> [String: Double] {
        var values: [String: Double] = [:]
        func rate(_ name: String, _ count: UInt64?) -> Double? { rates.perSecond("\(status.uuid) \(status.role.rawValue) \(status.peer) \(name)", count, at: now) }
        values["commits_per_second"] = rate("commits", status.committedEpoch)
        values["replication_bytes_per_second"] = rate("bytes", status.bytesSent)
        values["commit_age_ms"] = status.lastCommitAgeMs
        guard status.role == .primary else { return values }
        values["dirty_bytes_per_second"] = rate("dirty", status.bytesDirtied)
        values["replication_disk_bytes_per_second"] = rate("disk bytes", status.diskBytesSent)
        values["rpo_ms"] = status.rpoMs
        guard status.epoch > 0 else { return values }
        values["epoch_pause_ms"] = status.pauseMsMedian
        values["epoch_pause_p99_ms"] = status.pauseMsP99
        values["epoch_interval_ms"] = status.intervalMs
        values["lag_epochs_count"] = Double(status.lagEpochs)
        values["lag_bytes"] = Double(status.lagBytes)
        return values
    }

    /// Of each of several shadows, by KPI@HOST; empty for a guest with one, whose figures are those above.
    mutating func shadowValues(_ status: DomainStatus, at now: MonotonicTime) -> [String: Double] {
        guard status.role == .primary, let shadows = status.shadows, shadows.count > 1 else { return [:] }
        var values: [String: Double] = [:]
        for shadow in shadows {
            func rate(_ name: String, _ count: UInt64) -> Double? { rates.perSecond("\(status.uuid) shadow \(shadow.peer) \(name)", count, at: now) }
            let figures: [(String, Double?)] = [
                ("commits_per_second", rate("commits", shadow.committedEpoch)), ("replication_bytes_per_second", rate("bytes", shadow.bytesSent)), ("rpo_ms", shadow.rpoMs),
                ("commit_age_ms", shadow.lastCommitAgeMs), ("lag_epochs_count", Double(shadow.lagEpochs)), ("lag_bytes", Double(shadow.lagBytes)),
            ]
            for (name, value) in figures { values["\(name)@\(shadow.peer)"] = value }
        }
        return values
    }
}
