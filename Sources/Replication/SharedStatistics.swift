import Foundation
import Glibc
import Platform

/// Counters that a worker writes and its parent reads, in one shared page range: no message crosses for a look at them.
///
/// Every field is one aligned 64-bit word with a single writer, so a reader sees old or new, never half.
public final class SharedStatistics: @unchecked Sendable {
    public enum Field: Int, CaseIterable, Sendable {
        case epoch, committedEpoch, pagesDirtied, bytesSent, bytesResent, unsentEpochs, heldBytes
        /// Microseconds.
        case intervalMicroseconds
        /// CLOCK_MONOTONIC, nanoseconds: when the last committed epoch was captured, and when its commit was known.
        case lastCommitCaptured, lastCommitAt
        /// Epochs since the session began, and pages that did not need to cross.
        case epochsTotal, pagesDropped
        case pauseCount, windowCount
        /// 1: the data connection stands. 1: epochs are withheld because the user suspended the guest.
        case linkUp, suspended
        case syncBytes, syncBytesTotal
        /// Written by the parent. An epoch is committed only once it is proved that nobody let the guest run while it was captured:
        /// QEMU's RESUME event after its acknowledgement says so (`provenUntil`: its time, nanoseconds on the realtime clock), or
        /// the parent looked itself (`provenEpoch`). 1 in `torn`: somebody did. 1 in `eventsAway`: libvirt is gone, so no events
        /// come, and no orders to QEMU either.
        case provenUntil, provenEpoch, torn, eventsAway
        /// Writes of the guest and the mirror to all disks, and what of it crossed the wire, what waits to be committed.
        case diskWrites, diskBytesWritten, diskBytesSent, diskHeldBytes
        /// (shadow) Bytes of replicas looked through for their hashes, of how many.
        case diskHashedBytes, diskHashTotal
        /// CLOCK_MONOTONIC nanoseconds: that the process is not stopped.
        case heartbeat
        /// 1: QEMU's stream is closed, and none of its epochs is under way.
        case streamEnded
        /// All pauses since the session began.
        case pauseMicrosecondsTotal
        /// Memory of disk writes since the last epoch, whatever waits for a shadow besides.
        case diskOpenBytes
    }

    /// Of each shadow of the guest.
    public enum PeerField: Int, CaseIterable, Sendable {
        case committedEpoch, unsentEpochs, heldBytes, bytesSent
        /// CLOCK_MONOTONIC, nanoseconds: when its last committed epoch was captured, and when its commit was known.
        case lastCommitCaptured, lastCommitAt
        /// 1: the data connection stands. 1: it was given up.
        case linkUp, isLost
    }

    /// Shadows of one guest.
    public static let mostPeers = 8
    private static let peerBytes = 128

    /// Ring sizes: half a minute of pauses at 20 ms; the windows of the last seconds at 5 ms.
    public static let pauses = 1536
    public static let windows = 512
    /// Start, end, acknowledgement: a word each.
    private static let windowBytes = 24
    private static let pausesAt = 1024
    private static let windowsAt = pausesAt + pauses * 4
    private static let peersAt = windowsAt + windows * windowBytes
    public static let bytes = 1 << 15

    /// In `torn`: not a resume, but the end of a disk's mirror makes everything from then on useless.
    public static let mirrorEnded: UInt64 = 2

    private let memory: MappedMemory

    public init(_ fd: Int32) throws(SystemError) {
        memory = try MappedMemory.shared(fd, length: Self.bytes, what: "worker statistics")
    }

    public subscript(field: Field) -> UInt64 {
        get { memory.base.load(fromByteOffset: field.rawValue * 8, as: UInt64.self) }
        set { memory.base.storeBytes(of: newValue, toByteOffset: field.rawValue * 8, as: UInt64.self) }
    }

    /// `peer`: its place in the source worker's options, below `mostPeers`.
    public subscript(peer: Int, field: PeerField) -> UInt64 {
        get { memory.base.load(fromByteOffset: Self.peersAt + peer * Self.peerBytes + field.rawValue * 8, as: UInt64.self) }
        set { memory.base.storeBytes(of: newValue, toByteOffset: Self.peersAt + peer * Self.peerBytes + field.rawValue * 8, as: UInt64.self) }
    }

    private let adding = NSLock()

    /// Adds to a field that several threads of the worker count in.
    func add(_ field: Field, _ amount: UInt64) {
        adding.withLock { self[field] += amount }
    }

    /// Raises a field that several threads of the worker raise. True: it was lower.
    func raise(_ field: Field, to value: UInt64) -> Bool {
        adding.withLock {
            guard self[field] < value else { return false }
            self[field] = value
            return true
        }
    }

    /// Remembers one epoch's window on the realtime clock (as QEMU's events carry it) and the guest's pause in it.
    /// `acknowledged`: when the guest was allowed to run on; whoever made it run before tore the epoch.
    func record(windowStart: UInt64, windowEnd: UInt64, acknowledged: UInt64 = 0, pauseMicroseconds: UInt32) {
        let window = self[.windowCount]
        let at = Self.windowsAt + Int(window % UInt64(Self.windows)) * Self.windowBytes
        memory.base.storeBytes(of: windowStart, toByteOffset: at, as: UInt64.self)
        memory.base.storeBytes(of: windowEnd, toByteOffset: at + 8, as: UInt64.self)
        memory.base.storeBytes(of: acknowledged, toByteOffset: at + 16, as: UInt64.self)
        self[.windowCount] = window + 1
        let pause = self[.pauseCount]
        memory.base.storeBytes(of: pauseMicroseconds, toByteOffset: Self.pausesAt + Int(pause % UInt64(Self.pauses)) * 4, as: UInt32.self)
        self[.pauseCount] = pause + 1
        self[.pauseMicrosecondsTotal] += UInt64(pauseMicroseconds)
    }

    /// The guest is about to be allowed to run on. Before the order goes out: its RESUME event must not be taken for somebody else's.
    func publishAcknowledgement(_ moment: UInt64) {
        let at = Self.windowsAt + Int(self[.windowCount] % UInt64(Self.windows)) * Self.windowBytes
        memory.base.storeBytes(of: moment, toByteOffset: at + 16, as: UInt64.self)
    }

    /// For the parent, for each RESUME event in their order: what it says about the epochs so far.
    public func noteResume(at moment: UInt64) {
        if isInsideCapture(moment) {
            self[.torn] = 1
        } else if self[.torn] == 0 {
            self[.provenUntil] = moment
        }
    }

    /// The guest of the last recorded epoch, which was held, was let go now.
    func recordRelease(at moment: UInt64) {
        let count = self[.windowCount]
        guard count > 0 else { return }
        let at = Self.windowsAt + Int((count - 1) % UInt64(Self.windows)) * Self.windowBytes
        memory.base.storeBytes(of: moment, toByteOffset: at + 16, as: UInt64.self)
    }

    /// Opens a window whose end is not known yet.
    func openWindow(start: UInt64) {
        let at = Self.windowsAt + Int(self[.windowCount] % UInt64(Self.windows)) * Self.windowBytes
        memory.base.storeBytes(of: start, toByteOffset: at, as: UInt64.self)
        memory.base.storeBytes(of: UInt64.max, toByteOffset: at + 8, as: UInt64.self)
        memory.base.storeBytes(of: UInt64.max, toByteOffset: at + 16, as: UInt64.self)
    }

    /// Whether the moment (nanoseconds, realtime clock) lies inside an epoch's window, ours, not somebody else's doing.
    /// `tolerance` covers that QEMU's events carry microseconds.
    public func isInsideWindow(_ moment: UInt64, tolerance: UInt64 = 2_000) -> Bool {
        let count = self[.windowCount]
        // One more than the finished ones: the window that is open now.
        for back in 0..<UInt64(Self.windows - 1) where back <= count {
            let at = Self.windowsAt + Int((count - back) % UInt64(Self.windows)) * Self.windowBytes
            let start = memory.base.load(fromByteOffset: at, as: UInt64.self)
            let end = memory.base.load(fromByteOffset: at + 8, as: UInt64.self)
            if start == 0 { continue }
            if moment &+ tolerance >= start, end == .max || moment <= end &+ tolerance { return true }
        }
        return false
    }

    /// Whether a guest that began to run at the moment (nanoseconds, realtime clock) did so while an epoch was being captured.
    /// QEMU's events carry microseconds, rounded down: `tolerance` keeps our own resumes out.
    public func isInsideCapture(_ moment: UInt64, tolerance: UInt64 = 2_000) -> Bool {
        (0..<Self.windows).contains { index in
            let at = Self.windowsAt + index * Self.windowBytes
            let start = memory.base.load(fromByteOffset: at, as: UInt64.self)
            let acknowledged = memory.base.load(fromByteOffset: at + 16, as: UInt64.self)
            return start > 0 && moment >= start && moment &+ tolerance < acknowledged
        }
    }

    /// How many epochs began after the moment (nanoseconds, realtime clock).
    public func windowsBegun(after moment: UInt64) -> Int {
        (0..<Self.windows).reduce(0) { count, index in
            memory.base.load(fromByteOffset: Self.windowsAt + index * Self.windowBytes, as: UInt64.self) > moment ? count + 1 : count
        }
    }

    /// Median and 99th percentile of the last pauses, milliseconds; 0 when there are none.
    public func pauseQuantiles() -> (median: Double, p99: Double) {
        let count = Int(min(self[.pauseCount], UInt64(Self.pauses)))
        guard count > 0 else { return (0, 0) }
        let sorted = (0..<count).map { memory.base.load(fromByteOffset: Self.pausesAt + $0 * 4, as: UInt32.self) }.sorted()
        func at(_ quantile: Double) -> Double { Double(sorted[min(count - 1, Int(Double(count) * quantile))]) / 1000 }
        return (at(0.5), at(0.99))
    }

    public static var realtimeNanoseconds: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
