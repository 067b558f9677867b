@testable import Commands
import ControlProtocol
import XCTest

final class PolicyOptionsTests: XCTestCase {
    private func apply(_ line: String, to start: DomainPolicy = DomainPolicy()) throws -> DomainPolicy {
        let words = ["web1", "set"] + line.split(separator: " ").map(String.init)
        var policy = start
        try PolicyOptions(arguments: ArgumentParser.parse(words, PolicyCommand().spec), command: "policy").apply(to: &policy)
        return policy
    }

    func testOptionsChangeWhatThereIs() throws {
        let first = try apply("--engine periodic --interval 2s --hosts b,c --require rack --same zone --critical-disks vda,vdb --thresholds rpo_ms=500,cpu=0.5 --lifetime ghost --on-drift swap")
        XCTAssertEqual(first.engine, .periodic)
        XCTAssertEqual(first.intervalMs, 2000)
        XCTAssertEqual(first.hosts, ["b", "c"])
        XCTAssertEqual(first.rules, [.init(.differ, .rack, .required), .init(.same, .zone, .required)])
        XCTAssertEqual(first.criticalDisks, ["vda", "vdb"])
        XCTAssertEqual(first.thresholds, ["rpo_ms": 500, "cpu": 0.5])
        XCTAssertEqual(first.lifetime, .ghost)
        let second = try apply("--interval default --hosts any --prefer rack --critical-disks none --off", to: first)
        XCTAssertNil(second.intervalMs)
        XCTAssertEqual(second.hosts, [])
        XCTAssertEqual(second.rules, [.init(.same, .zone, .required), .init(.differ, .rack, .preferred)], "A label has one rule")
        XCTAssertEqual(second.criticalDisks, [])
        XCTAssertEqual(second.onDrift, .swap, "What is not named stays")
        XCTAssertFalse(second.isEnabled)
        XCTAssertTrue(try apply("--interval 1s", to: second).isEnabled, "Whoever sets something wants it")
    }

    func testMistakes() {
        for (line, word) in [("--engine warp", "'warp'"), ("--shadows many", "'many'"), ("--require row", "'row'"), ("--thresholds a", "'a'"), ("--thresholds a=1,a=2", "twice"),
                             ("--interval soon", "'soon'"), ("--disk-rate x", "'x'"), ("--on --off", "exclude"), ("--with-disks --without-disks", "exclude")] {
            XCTAssertThrowsError(try apply(line), line) { XCTAssertTrue(($0 as? UsageError)?.message.contains(word) == true, "\($0)") }
        }
    }
}
