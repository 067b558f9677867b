import CLinux
import Foundation
import Glibc

/// A thread with a name that shows up in `ps -L`. Worker threads block in system calls, so they are not tasks of the shared pool.
public func startThread(_ name: String, _ body: @escaping @Sendable () -> Void) {
    let thread = Thread {
        _ = clinux_set_name(name)
        body()
    }
    thread.stackSize = 512 << 10
    thread.start()
}

/// Calls `body` for each item, all at once and each on a thread of its own, and returns what they gave, in order. It waits for all of them: whatever
/// `body` waits for must have a limit.
/// - Parameter deadline: waits no longer for more than one item, and returns nothing then.
public func forEachAtOnce<Item: Sendable, R: Sendable>(_ name: String, _ items: [Item], until deadline: MonotonicTime? = nil, _ body: @escaping @Sendable (Item) -> R) -> [R] {
    guard items.count > 1 else { return items.map(body) }
    let results = Guarded<[Int: R]>([:])
    for (index, item) in items.enumerated() {
        startThread(name) {
            // Not within `change`: the others would wait for it.
            let result = body(item)
            results.change { $0[index] = result }
        }
    }
    return results.wait(until: deadline) { results in results.count == items.count ? items.indices.compactMap { results[$0] } : nil } ?? []
}

/// A lock to wait on, with limits on the monotonic clock. NSCondition's are on the wall clock: when that is set back by an hour a
/// wait of 50 ms lasts an hour, heartbeats stop, and the connection breaks.
public final class MonotonicCondition: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    public init() {
        pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    public func withLock<R>(_ body: () throws -> R) rethrows -> R {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return try body()
    }

    public func broadcast() { pthread_cond_broadcast(condition) }

    /// With the lock held: waits for a broadcast, or nothing; false once the limit has passed.
    public func wait(until limit: MonotonicTime?) -> Bool {
        guard let limit else { return pthread_cond_wait(condition, mutex) == 0 }
        var time = timespec(tv_sec: Int(limit.nanoseconds / 1_000_000_000), tv_nsec: Int(limit.nanoseconds % 1_000_000_000))
        return pthread_cond_timedwait(condition, mutex, &time) != ETIMEDOUT
    }
}

/// A value behind a lock that threads can wait on.
public final class Guarded<Value>: @unchecked Sendable {
    private let condition = MonotonicCondition()
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
                if let deadline, deadline <= .now { return nil }
                _ = condition.wait(until: deadline)
            }
        }
    }
}
