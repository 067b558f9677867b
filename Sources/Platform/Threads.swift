import CLinux
import Foundation

/// A thread with a name that shows up in `ps -L`. Worker threads block in system calls, so they are not tasks of the shared pool.
public func startThread(_ name: String, _ body: @escaping @Sendable () -> Void) {
    let thread = Thread {
        _ = clinux_set_name(name)
        body()
    }
    thread.stackSize = 512 << 10
    thread.start()
}

/// A value behind a lock that threads can wait on.
public final class Guarded<Value>: @unchecked Sendable {
    private let condition = NSCondition()
    private var value: Value

    public init(_ value: Value) { self.value = value }

    public func read<R>(_ body: (Value) -> R) -> R { condition.withLock { body(value) } }

    @discardableResult
    public func change<R>(_ body: (inout Value) -> R) -> R {
        condition.withLock {
            defer { condition.broadcast() }
            return body(&value)
        }
    }

    /// Waits until `body` gives something; nil at the deadline.
    public func wait<R>(until deadline: MonotonicTime?, _ body: (inout Value) -> R?) -> R? {
        condition.withLock {
            while true {
                if let result = body(&value) { return result }
                let left = deadline.map { Double($0.pollTimeout) / 1000 } ?? 3600
                if left <= 0 { return nil }
                _ = condition.wait(until: Date(timeIntervalSinceNow: left))
            }
        }
    }
}
