import Foundation
import Platform
import Telemetry
import XCTest
@testable import Orchestration

final class MirrorTests: XCTestCase {
    private let uuid = "8f8a7c1e-0000-4000-8000-000000000001"

    private func pair(_ uuid: String, _ peer: String) -> PairSample {
        PairSample(uuid: uuid, domain: "web1", peer: peer, primary: Sample(time: 5, values: ["x_percent": 1]), shadow: Sample(time: 4, values: ["x_percent": 2]))
    }

    func testRowsGoToTheShadowsHost() {
        let at = MonotonicTime.now
        let outbox = MirrorOutbox([pair(uuid, "b"), pair("8f8a7c1e-0000-4000-8000-000000000002", "c")], at: at)
        let rows = outbox.rows(for: "b", now: at.adding(milliseconds: 250))
        XCTAssertEqual(rows, [MirroredRow(uuid: uuid, domain: "web1", ageMs: 250, values: ["p_x_percent": 1, "s_x_percent": 2])])
        XCTAssertEqual(MirrorOutbox().rows(for: "b", now: at), [])
    }

    func testTimesAreOfThisHostsClock() throws {
        let inbox = MirrorInbox()
        inbox.put([MirroredRow(uuid: uuid, domain: "web1", ageMs: 2000, values: ["p_x": 1])])
        let taken = inbox.take(of: [uuid], now: 1_000_000)
        let row = try XCTUnwrap(taken.first)
        XCTAssertTrue((997_000...998_000).contains(row.sample.time), "\(row.sample.time)")
        XCTAssertEqual(row.label, "web1")
        XCTAssertTrue(inbox.take(of: [uuid], now: 1_000_000).isEmpty, "taken once")
    }

    /// A guest that runs here writes its own history, whatever a late message says.
    func testOnlyShadowsThatWaitHere() {
        let inbox = MirrorInbox()
        inbox.put([MirroredRow(uuid: uuid, domain: "web1", ageMs: 0, values: ["p_x": 1])])
        XCTAssertTrue(inbox.take(of: [], now: 1).isEmpty)
        XCTAssertTrue(inbox.take(of: [uuid], now: 1).isEmpty)
    }

    func testWhatMakesNoSenseIsNotKept() {
        let good = MirroredRow(uuid: uuid, domain: "web1", ageMs: 1, values: ["p_x": 1])
        XCTAssertTrue(good.isPlausible)
        let changes: [(inout MirroredRow) -> Void] = [
            { $0.uuid = "../host" }, { $0.uuid = self.uuid.uppercased() }, { $0.ageMs = -1 }, { $0.ageMs = .nan }, { $0.ageMs = 1e9 },
            { $0.values = ["p_x": .infinity] }, { $0.values = [String(repeating: "k", count: 300): 1] }, { $0.domain = String(repeating: "d", count: 300) },
            { $0.values = Dictionary(uniqueKeysWithValues: (0..<5000).map { ("k\($0)", 1) }) },
        ]
        for change in changes {
            var row = good
            change(&row)
            XCTAssertFalse(row.isPlausible, "\(row.uuid) \(row.ageMs) \(row.values.count)")
        }
        let inbox = MirrorInbox(), many = (0..<5000).map { _ in MirroredRow(uuid: UUID().uuidString.lowercased(), domain: "d", ageMs: 0, values: [:]) }
        for row in many { inbox.put([row]) }
        XCTAssertLessThanOrEqual(inbox.take(of: Set(many.map(\.uuid)), now: 1).count, 2 * MirroredRow.mostRows)
    }
}
