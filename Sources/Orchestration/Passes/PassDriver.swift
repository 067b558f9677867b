import ControlProtocol
import Libvirt
import Platform
import Replication

/// What is known of the pass under way, gathered from QEMU's events and the worker's.
///
///     MIGRATION setup, active    STOP    RESUME    ...    MIGRATION completed        QEMU
///                 connected                                            read          the worker
struct PassRun {
    let kind: PassKind
    let begunAt = MonotonicTime.now
    var isActive = false
    /// Its user stopped the guest before QEMU had begun, or while it stood still for the pass.
    var wasSuspended = false
    var stoppedAt: UInt64?
    var resumedAt: UInt64?
    var migration = ""
    /// Whether it was read to its end, and is whole.
    var isWhole: Bool?
    var readAt: MonotonicTime?

    init(_ kind: PassKind) { self.kind = kind }

    mutating func stopped(_ moment: UInt64) {
        if isActive { stoppedAt = moment } else { wasSuspended = true }
    }

    /// By libvirt's own record its user suspended it, while it stood still for the pass or was about to: that stopped nothing.
    mutating func noteSuspend() {
        if resumedAt == nil { wasSuspended = true }
    }

    mutating func resumed(_ moment: UInt64) {
        guard stoppedAt != nil || wasSuspended else { return }
        resumedAt = resumedAt ?? moment
    }

    mutating func migration(_ status: String) {
        if status == "active" { isActive = true }
        migration = status
    }

    /// QEMU is done with it, one way or the other.
    var isOverInQEMU: Bool { ["completed", "failed", "cancelled"].contains(migration) }
}

/// When passes are due.
struct PassSchedule {
    /// What follows a pass that came to nothing, at first.
    private static let retryMs = 1000.0

    private(set) var nextAt = MonotonicTime.now
    /// Of the last pass that was committed.
    private var begunAt: MonotonicTime?
    /// Passes in a row that came to nothing; those that were not whole.
    private(set) var failures = 0
    private(set) var partial = 0

    mutating func committed(_ run: PassRun, intervalMs: Double) {
        (failures, partial) = (0, 0)
        begunAt = run.begunAt
        nextAt = run.begunAt.adding(milliseconds: intervalMs)
    }

    /// Another interval: the next pass is due by it. What failed, or was not whole, has a plan of its own.
    mutating func retime(intervalMs: Double) {
        guard failures == 0, partial == 0, let begunAt else { return }
        nextAt = begunAt.adding(milliseconds: intervalMs)
    }

    /// A pass that was not whole brought a part: the next one brings more, and is due at once.
    mutating func wasPartial() {
        partial += 1
        nextAt = .now
    }

    mutating func failed(intervalMs: Double) {
        failures += 1
        let pause = Self.retryMs * Double(1 << min(failures - 1, 6))
        nextAt = MonotonicTime.now.adding(milliseconds: min(pause, max(intervalMs, Self.retryMs)))
    }

    /// Earlier than planned: the guest's disk writes fill the memory that they are held in.
    mutating func hurry() { nextAt = min(nextAt, .now) }
}
