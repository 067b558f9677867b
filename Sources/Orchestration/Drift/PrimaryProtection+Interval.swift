import ControlProtocol
import Libvirt
import Platform
import Replication

/// The interval that is ordered at the moment, in place of the configured one.
struct IntervalOrder: Equatable, Sendable {
    /// Whole milliseconds: QEMU takes no others.
    var ms: Double
    var reason: String
    /// What the worker and QEMU were told.
    var applied: Double?
}

/// Other intervals than the configured one, while the guest is protected.
extension PrimaryProtection {
    /// Takes effect with the next epoch. Nothing is kept: with the service's next start the configured interval holds again.
    func setInterval(_ wanted: Double, reason: String) {
        guard wanted.isFinite else { return }
        let milliseconds = min(max(wanted.rounded(), Interval.rangeMs.lowerBound), Interval.rangeMs.upperBound)
        let configured = record.intervalMs.rounded()
        let isNew = steering.change { order in
            // What nobody ordered is what it began with.
            let applied = order == nil ? configured : order?.applied
            order = IntervalOrder(ms: milliseconds, reason: reason, applied: applied)
            return applied != milliseconds
        }
        if isNew { post(.interval) }
    }

    /// Milliseconds.
    var orderedIntervalMs: Double { steering.read { $0?.ms } ?? record.intervalMs }

    /// On the protection's thread: what was ordered last reaches the worker and QEMU.
    func applyInterval() {
        let wanted = orderedIntervalMs
        if isPeriodic {
            passes.schedule.retime(intervalMs: wanted)
        } else {
            // A question to QEMU waits for libvirt, and a suspended guest has no epochs: whoever ordered it orders again.
            guard let worker, !isSuspended, !libvirtAway else { return }
            do {
                try domain.monitor(MigrateSetParameters(checkpointDelayMilliseconds: UInt32(wanted)))
            } catch {
                return Log.debug("\(domain.name): QEMU did not take an interval of \(wanted) ms: \(error)")
            }
            worker.order(WorkerCommand(.setInterval, intervalMs: wanted))
        }
        steering.change { $0?.applied = wanted }
    }

    /// For `status`: the interval in use and why it is that.
    func explainInterval(_ status: inout DomainStatus) {
        let order = steering.read { $0 }
        if isPeriodic, let order { status.intervalMs = order.ms }
        let wanted = order?.ms ?? record.intervalMs
        guard status.epoch > 0 else { return }
        status.intervalReason = status.intervalMs > wanted * 1.05 ? "doubled while the shadow lags behind" : order?.reason
    }
}
