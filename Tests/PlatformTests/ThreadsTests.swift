import Foundation
import XCTest
@testable import Platform

/// Runs `body` on a thread and hands out what it returned.
private final class Running<Value>: @unchecked Sendable {
    private let done = DispatchSemaphore(value: 0)
    private var value: Value?
    init(_ body: @escaping @Sendable () -> Value) {
        Thread.detachNewThread { [self] in
            value = body()
            done.signal()
        }
    }
    func result() -> Value? { done.wait(timeout: .now() + 10) == .success ? value : nil }
}

final class ThreadsTests: XCTestCase {
    func testLimits() {
        let guarded = Guarded(0)
        let start = MonotonicTime.now
        XCTAssertNil(guarded.wait(until: start.adding(milliseconds: 30)) { $0 > 0 ? $0 : nil })
        XCTAssertGreaterThanOrEqual(MonotonicTime.now.milliseconds(since: start), 30)
        XCTAssertNil(guarded.wait(until: start) { $0 > 0 ? $0 : nil }, "A limit that has passed does not wait")
        guarded.change { $0 = 5 }
        XCTAssertEqual(guarded.wait(until: start) { $0 > 0 ? $0 : nil }, 5, "but looks")
    }

    func testForEachAtOnce() {
        XCTAssertEqual(forEachAtOnce("test", [Int]()) { $0 }, [])
        XCTAssertEqual(forEachAtOnce("test", [7]) { $0 + 1 }, [8])
        // Each waits until all are there: one after the other they would wait for the limit.
        let here = Guarded(0)
        let results = forEachAtOnce("test", Array(0..<5)) { number in
            here.change { $0 += 1 }
            return here.wait(until: .now.adding(milliseconds: 10_000)) { $0 == 5 ? number * 10 : nil }
        }
        XCTAssertEqual(results, [0, 10, 20, 30, 40], "in their order")
    }

    func testEveryWaiterWakes() {
        let guarded = Guarded(0)
        let waiters = (0..<8).map { index in
            Running { guarded.wait(until: index % 2 == 0 ? nil : .now.adding(milliseconds: 10_000)) { $0 > 0 ? $0 : nil } }
        }
        usleep(20_000)
        guarded.change { $0 = 7 }
        for waiter in waiters { XCTAssertEqual(waiter.result(), 7) }
    }

    func testCountingFromManyThreads() {
        let guarded = Guarded(0)
        let threads = (0..<4).map { _ in Running { for _ in 0..<1000 { guarded.change { $0 += 1 } } } }
        for thread in threads { _ = thread.result() }
        XCTAssertEqual(guarded.read { $0 }, 4000)
    }
}
