import Glibc
import Platform

/// What telemetry costs: CPU time of its threads, whichever of them it is spent on.
public final class CPUMeter: Sendable {
    private struct State {
        var nanoseconds: UInt64 = 0
        var marks: [(at: MonotonicTime, nanoseconds: UInt64)] = []
    }
    private let state = Guarded(State())
    /// Long enough for what is done once a minute.
    private static let windowMs = 120_000.0

    public init() {}

    /// Runs `body` and adds the calling thread's CPU time.
    public func measure<R>(_ body: () throws -> R) rethrows -> R {
        let begin = Self.threadNanoseconds
        defer {
            let spent = Self.threadNanoseconds &- begin
            state.change { $0.nanoseconds &+= spent }
        }
        return try body()
    }

    /// Once a tick: from here on the window is counted.
    public func mark() {
        let now = MonotonicTime.now
        state.change { state in
            state.marks.append((now, state.nanoseconds))
            while state.marks.count > 2, now.milliseconds(since: state.marks[0].at) > Self.windowMs { state.marks.removeFirst() }
        }
    }

    /// Per cent of one core over the last two minutes; nil before the second tick.
    public var percentOfCore: Double? {
        state.read { state in
            guard let first = state.marks.first, let last = state.marks.last, last.at > first.at else { return nil }
            return Double(last.nanoseconds - first.nanoseconds) / 1e6 / last.at.milliseconds(since: first.at) * 100
        }
    }

    private static var threadNanoseconds: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
        return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
    }
}
