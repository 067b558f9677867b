import Configuration
import ControlProtocol
import XCTest
@testable import Orchestration

final class WarmSwapLawTests: XCTestCase {
    private var law = WarmSwapLaw()

    private func look(_ now: Double, score: Double? = nil, _ change: (inout WarmSwapLaw.Look) -> Void = { _ in }) -> WarmSwapLaw.Look {
        var look = WarmSwapLaw.Look(now: now, score: score)
        look.onDrift = .swap
        look.commitAgeMs = 30
        change(&look)
        return look
    }

    private func isSwap(_ decision: WarmSwapLaw.Decision) -> Bool {
        if case .swap = decision { true } else { false }
    }

    private func obstacle(_ decision: WarmSwapLaw.Decision) -> String? {
        if case .held(_, let obstacle) = decision { obstacle.kind } else { nil }
    }

    func testDriftMustLast() {
        XCTAssertEqual(law.decide(look(0, score: 0.99)), .stay)
        XCTAssertEqual(law.decide(look(100, score: 1)), .wait(60))
        XCTAssertEqual(law.decide(look(130, score: 1.5)), .wait(30))
        // It dances about 1: one alarm.
        XCTAssertEqual(law.decide(look(150, score: 0.9)), .wait(10))
        XCTAssertTrue(isSwap(law.decide(look(160, score: 1.2))))
        // Over, and anew.
        XCTAssertEqual(law.decide(look(161, score: 0.7)), .stay)
        XCTAssertEqual(law.decide(look(162, score: 1)), .wait(60))
    }

    func testWhileLearningNothingIsConcluded() {
        XCTAssertEqual(law.decide(look(0)), .stay)
        _ = law.decide(look(0, score: 2))
        XCTAssertEqual(law.decide(look(70)), .stay, "a baseline that is learned anew ends the alarm")
    }

    func testAShadowThatDriftsIsNoReason() {
        for second in 0..<200 { XCTAssertEqual(law.decide(look(Double(second), score: 3) { $0.isShadowAccused = true }), .stay) }
    }

    func testHardwareIsNotWaitedFor() {
        XCTAssertTrue(isSwap(law.decide(look(0, score: 0.1) { $0.hardware = "CPU Temp: too hot" })))
        XCTAssertTrue(isSwap(law.decide(look(0) { $0.hardware = "CPU Temp: too hot" })), "while learning as well")
    }

    /// Each thing that stands against a swap, alone.
    func testObstacles() {
        func held(_ change: @escaping (inout WarmSwapLaw.Look) -> Void) -> String? {
            var law = WarmSwapLaw()
            return obstacle(law.decide(look(10_000, score: 0.1) { look in
                look.hardware = "CPU Temp: too hot"
                change(&look)
            }))
        }
        XCTAssertNil(held { _ in })
        XCTAssertEqual(held { $0.onDrift = .notify }, "policy")
        for state in ProtectionState.allCases where state != .protected { XCTAssertEqual(held { $0.state = state }, "not_current", "\(state)") }
        XCTAssertEqual(held { $0.commitAgeMs = nil }, "not_current")
        XCTAssertEqual(held { $0.commitAgeMs = 2001 }, "not_current")
        XCTAssertNil(held { ($0.commitAgeMs, $0.intervalMs) = (70_000, 30_000) })
        XCTAssertEqual(held { ($0.commitAgeMs, $0.intervalMs) = (76_000, 30_000) }, "not_current")
        XCTAssertEqual(held { $0.lagEpochs = 65 }, "not_current")
        XCTAssertEqual(held { $0.lastSwap = 10_000 - 3599 }, "hourly")
        XCTAssertNil(held { $0.lastSwap = 10_000 - 3600 })
        XCTAssertEqual(held { $0.lastSwap = 10_500 }, "hourly", "a clock that was set back")
        XCTAssertNil(held { $0.lastSwap = 1_000_000 }, "a clock that was wrong by days when it was noted")
        XCTAssertEqual(held { $0.retryAt = 10_001 }, "failed")
        XCTAssertNil(held { $0.retryAt = 10_000 })
        XCTAssertEqual(held { $0.isShadowAccused = true }, "peer")
        XCTAssertEqual(held { $0.peerObstacle = "b is suspect" }, "peer")
    }

    func testWhatItSays() {
        let held = law.decide(look(10_000) { ($0.hardware, $0.lastSwap) = ("CPU Temp: too hot", 10_000 - 600) })
        XCTAssertEqual(held.text, "no swap though CPU Temp: too hot: it was swapped by itself 10 min ago, and at most one such swap an hour is made")
        XCTAssertEqual(WarmSwapLaw.Decision.wait(12.2).text, "a swap is considered in 13 s, if it goes on")
    }
}
