import Glibc

/// A point on the monotonic clock, in nanoseconds. It never steps when an administrator or NTP sets the time.
public struct MonotonicTime: Comparable, Hashable, Sendable, Codable {
    public let nanoseconds: UInt64

    public init(nanoseconds: UInt64) {
        self.nanoseconds = nanoseconds
    }

    public static var now: MonotonicTime {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return MonotonicTime(nanoseconds: UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec))
    }

    public static func < (a: MonotonicTime, b: MonotonicTime) -> Bool { a.nanoseconds < b.nanoseconds }

    /// Milliseconds from `earlier` to this point; 0 when it is not earlier.
    public func milliseconds(since earlier: MonotonicTime) -> Double {
        nanoseconds > earlier.nanoseconds ? Double(nanoseconds - earlier.nanoseconds) / 1e6 : 0
    }

    public func adding(milliseconds: Double) -> MonotonicTime {
        MonotonicTime(nanoseconds: nanoseconds &+ UInt64(max(0, milliseconds) * 1e6))
    }

    /// Whole milliseconds left until this point, rounded up, for poll(2); 0 when it has passed.
    public var pollTimeout: Int32 {
        let now = MonotonicTime.now
        guard nanoseconds > now.nanoseconds else { return 0 }
        return Int32(clamping: (nanoseconds - now.nanoseconds + 999_999) / 1_000_000)
    }
}
