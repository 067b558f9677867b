import Platform

/// Says on a link that this side is there, while its receiving thread is busy with storage, which may take longer than the source's
/// patience. Outside `whileBusy` the link is the receiving thread's alone.
final class Acknowledger: @unchecked Sendable {
    /// Changed and read behind the condition's lock. Being busy is no news to the thread: it looks when the next sign is due, and is
    /// not woken up for every epoch.
    private final class State: @unchecked Sendable {
        let condition = MonotonicCondition()
        var busyWith: UInt64?
        var isOver = false
    }

    private let state = State()

    /// - Parameter everyMs: between two signs of life.
    init(_ link: Link, everyMs: Double) {
        startThread("acknowledge") { [state] in
            var due = MonotonicTime.now.adding(milliseconds: everyMs)
            // Under the lock: whoever ends being busy waits until this is sent.
            state.condition.withLock {
                while !state.isOver {
                    if state.condition.wait(until: due) { continue }
                    due = MonotonicTime.now.adding(milliseconds: everyMs)
                    guard let epoch = state.busyWith, !state.isOver else { continue }
                    // The receiving thread meets the same error.
                    try? link.send(.acknowledge, epoch: epoch, numbers: FrameEntry(location: epoch, hashLow: 0, hashHigh: 0))
                }
            }
        }
    }

    /// Runs `body`, during which `epoch` is acknowledged again and again.
    func whileBusy<R>(_ epoch: UInt64, _ body: () throws -> R) rethrows -> R {
        state.condition.withLock { state.busyWith = epoch }
        defer { state.condition.withLock { state.busyWith = nil } }
        return try body()
    }

    func end() {
        state.condition.withLock {
            state.isOver = true
            state.condition.broadcast()
        }
    }
}
