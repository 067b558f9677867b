import Platform

/// Says on a link that this side is there, while its receiving thread is busy with storage, which may take longer than the source's
/// patience. Outside `whileBusy` the link is the receiving thread's alone.
final class Acknowledger: @unchecked Sendable {
    private struct State {
        var busyWith: UInt64?
        var isOver = false
    }

    private let state = Guarded(State())

    /// - Parameter everyMs: between two signs of life.
    init(_ link: Link, everyMs: Double) {
        startThread("acknowledge") { [state] in
            while state.wait(until: MonotonicTime.now.adding(milliseconds: everyMs), { $0.isOver ? true : nil }) == nil {
                // Under the lock: whoever ends being busy waits until this is sent.
                state.change { state in
                    guard let epoch = state.busyWith else { return }
                    // The receiving thread meets the same error.
                    try? link.send(.acknowledge, epoch: epoch, numbers: FrameEntry(location: epoch, hashLow: 0, hashHigh: 0))
                }
            }
        }
    }

    /// Runs `body`, during which `epoch` is acknowledged again and again.
    func whileBusy<R>(_ epoch: UInt64, _ body: () throws -> R) rethrows -> R {
        state.change { $0.busyWith = epoch }
        defer { state.change { $0.busyWith = nil } }
        return try body()
    }

    func end() { state.change { $0.isOver = true } }
}
