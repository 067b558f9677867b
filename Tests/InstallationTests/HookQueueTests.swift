import ControlProtocol
import Foundation
import Platform
import XCTest
@testable import Orchestration

final class HookQueueTests: XCTestCase {
    private func call(_ number: Int, xml: String? = nil) -> HookCall { HookCall(domain: "\(number)", operation: .start, xml: xml) }

    func testOrderAndNoWaiting() throws {
        let seen = Guarded<[String]>([]), gate = Guarded(false)
        let queue = HookQueue { call in
            _ = gate.wait(until: nil) { $0 ? true : nil }
            seen.change { $0.append(call.domain) }
        }
        // The handler hangs; whoever adds does not.
        let begin = MonotonicTime.now
        for number in 0..<HookQueue.mostCalls { queue.add(call(number)) }
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: begin), 5000)
        XCTAssertEqual(seen.read { $0 }, [])
        gate.change { $0 = true }
        try waitUntil("all are handled") { seen.read { $0.count } == HookQueue.mostCalls }
        XCTAssertEqual(seen.read { $0 }, (0..<HookQueue.mostCalls).map { "\($0)" })
        // It ended when nothing was left, and begins anew.
        queue.add(call(-1))
        try waitUntil("one more") { seen.read { $0.last } == "-1" }
    }

    func testTheOldestGiveWay() throws {
        let seen = Guarded<[String]>([]), gate = Guarded(false)
        let queue = HookQueue { call in
            _ = gate.wait(until: nil) { $0 ? true : nil }
            seen.change { $0.append(call.domain) }
        }
        queue.add(call(0))
        usleep(100_000)
        let xml = String(repeating: "x", count: HookQueue.mostBytes / 4)
        for number in 1...9 { queue.add(call(number, xml: xml)) }
        queue.add(call(10))
        gate.change { $0 = true }
        try waitUntil("the last one") { seen.read { $0.last } == "10" }
        let numbers = seen.read { $0 }.compactMap { Int($0) }
        XCTAssertEqual(numbers, numbers.sorted())
        XCTAssertTrue((3...5).contains(numbers.count), "\(numbers): three with XML fit, besides the one that was being handled")
        XCTAssertEqual(numbers.first, 0)
    }

    func testHandlerIsReplaced() throws {
        let seen = Guarded<[String]>([])
        let queue = HookQueue()
        queue.add(call(1))
        usleep(50_000)
        queue.onHook { call in seen.change { $0.append(call.domain) } }
        queue.add(call(2))
        try waitUntil("the second one") { seen.read { $0 } == ["2"] }
    }
}
