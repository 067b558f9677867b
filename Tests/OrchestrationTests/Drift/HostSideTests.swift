import XCTest
@testable import Orchestration

final class HostSideTests: XCTestCase {
    func testTheWayToTheOtherSideAndTheQuickestToThirdHosts() {
        let host = ["host_cpu_percent": 12.0, "host_storage_write_ms": 3, "host_storage_write_ms@/srv": 3, "peer_round_trip_ms": 40, "peer_round_trip_ms@b": 0.4,
                    "peer_round_trip_ms@c": 40, "peer_round_trip_ms@d": 0.7]
        XCTAssertEqual(HostSide.values(host, towards: "b"),
                       ["host_cpu_percent": 12, "host_storage_write_ms": 3, "peer_round_trip_ms": 0.4, "others_round_trip_ms": 0.7], "one of the others may be slow itself")
        XCTAssertEqual(HostSide.values(host, towards: "d")["others_round_trip_ms"], 0.4)
    }

    func testWithoutThirdHostsNobodyTells() {
        let side = HostSide.values(["peer_round_trip_ms": 0.4, "peer_round_trip_ms@b": 0.4], towards: "b")
        XCTAssertEqual(side, ["peer_round_trip_ms": 0.4])
        XCTAssertEqual(HostSide.values([:], towards: "b"), [:])
    }

    /// Both sides of a pair ask the same third hosts, as far as there are so many.
    func testWitnessesAreTheSameOnBothSides() {
        let all = ["a", "b", "c", "d", "e", "f", "g"]
        let seenByA = HostSide.witnesses(all.filter { $0 != "a" }).subtracting(["b"]), seenByB = HostSide.witnesses(all.filter { $0 != "b" }).subtracting(["a"])
        XCTAssertEqual(seenByA, seenByB)
        XCTAssertEqual(seenByA, ["c", "d", "e"])
        XCTAssertEqual(HostSide.witnesses([]), [])
    }
}
