@testable import Orchestration
import ControlProtocol
import XCTest

final class PlacementRankingTests: XCTestCase {
    private func labels(_ text: String) throws -> HostLabels { try HostLabels(text) }

    private func rank(_ hosts: [(name: String, labels: String, freeGiB: UInt64)], _ rules: [DomainPolicy.Rule] = [], hosts allowed: [String] = [],
                      failures: [String: String] = [:], home: String = "rack=r1 power=p1 network=n1 zone=z1") throws -> [PlacementReport.Candidate] {
        var policy = DomainPolicy()
        policy.rules = rules
        policy.hosts = allowed
        let facts = try hosts.map { PlacementRanking.Facts(host: $0.name, labels: try labels($0.labels), freeBytes: $0.freeGiB << 30 + 12345, failures: failures[$0.name].map { [$0] } ?? []) }
        return PlacementRanking.rank(facts, home: "a", homeLabels: try labels(home), policy: policy)
    }

    func testDiffersInAsMuchAsPossible() throws {
        let ranked = try rank([("same", "rack=r1 power=p1 network=n1", 64), ("one", "rack=r2 power=p1 network=n1", 64), ("all", "rack=r2 power=p2 network=n2", 1), ("two", "rack=r2 power=p2 network=n1", 64)])
        XCTAssertEqual(ranked.map(\.host), ["all", "two", "one", "same"], "Labels count more than memory")
        XCTAssertEqual(ranked.map(\.score), [3, 2, 1, 0])
        XCTAssertEqual(ranked.map(\.verdict), [.chosen, .fits, .fits, .fits])
        XCTAssertEqual(ranked[0].differs, ["rack", "power", "network"])
    }

    func testTiesByMemoryThenCostThenName() throws {
        XCTAssertEqual(try rank([("b", "", 8), ("c", "", 9), ("d", "", 8)]).map(\.host), ["c", "b", "d"])
        XCTAssertEqual(try rank([("b", "cost=5", 8), ("c", "cost=2", 8), ("d", "cost=2", 8)]).map(\.host), ["c", "d", "b"])
        XCTAssertEqual(try rank([("b", "rack=r2 cost=9", 1), ("c", "rack=r1", 99)]).map(\.host), ["b", "c"], "Neither makes up for a rack")
    }

    func testBelowOneGiBMemoryIsNoise() {
        let facts = [("c", UInt64(8) << 30 + 900_000_000), ("b", UInt64(8) << 30)].map { PlacementRanking.Facts(host: $0.0, labels: HostLabels(), freeBytes: $0.1) }
        XCTAssertEqual(PlacementRanking.rank(facts, home: "a", homeLabels: HostLabels(), policy: DomainPolicy()).map(\.host), ["b", "c"])
    }

    func testRequiredRulesExclude() throws {
        let ranked = try rank([("b", "rack=r1 power=p2 network=n2", 64), ("c", "power=p2 network=n2", 64), ("d", "rack=r2", 1)], [.init(.differ, .rack, .required)])
        XCTAssertEqual(ranked.map(\.host), ["d", "b", "c"])
        XCTAssertEqual(ranked.map(\.verdict), [.chosen, .excluded, .excluded])
        XCTAssertEqual(ranked[1].reasons, ["Same rack as a (r1)"])
        XCTAssertEqual(ranked[2].reasons, ["c has no label rack"])
        XCTAssertEqual(try rank([("b", "rack=r2", 1)], [.init(.differ, .rack, .required)], home: "")[0].reasons, ["a has no label rack"], "Nobody can know that they differ")
    }

    func testSameZone() throws {
        let ranked = try rank([("b", "zone=z2 rack=r2", 64), ("c", "zone=z1 rack=r2", 1)], [.init(.same, .zone, .required)])
        XCTAssertEqual(ranked.map(\.host), ["c", "b"])
        XCTAssertEqual(ranked[1].reasons, ["Another zone than a (z2, not z1)"])
    }

    func testAPreferenceForTheSameReplacesTheUsualOne() throws {
        let ranked = try rank([("b", "network=n2", 64), ("c", "network=n1", 1)], [.init(.same, .network, .preferred)])
        XCTAssertEqual(ranked.map(\.host), ["c", "b"])
        XCTAssertEqual(ranked[1].reasons, ["Another network than a (n2, not n1)"], "It fits; this speaks against it")
        XCTAssertEqual(ranked[1].verdict, .fits)
    }

    func testHostsOfThePolicyAndFailures() throws {
        let ranked = try rank([("b", "rack=r2", 64), ("c", "rack=r2", 64), ("d", "", 64)], hosts: ["A", "B", "D"], failures: ["b": "b has no /dev/kvm"])
        XCTAssertEqual(ranked.map(\.host), ["d", "b", "c"])
        XCTAssertEqual(ranked[1].reasons, ["b has no /dev/kvm"])
        XCTAssertEqual(ranked[2].reasons, ["The policy allows A, B, D only"])
    }

    func testNoHostAndNoneThatFits() throws {
        XCTAssertEqual(try rank([]).count, 0)
        let ranked = try rank([("c", "", 1), ("b", "", 1)], failures: ["b": "It is being drained", "c": "c lacks memory"])
        XCTAssertEqual(ranked.map(\.verdict), [.excluded, .excluded])
        let report = PlacementReport(domain: "web1", host: "a", labels: HostLabels(), rules: [], candidates: ranked)
        XCTAssertEqual(Placement.nowhere(report, in: "f").message, "No host can hold a shadow of web1: b: It is being drained; c: c lacks memory")
    }

    func testLabels() throws {
        let all = try labels("  cost=3 zone=z  rack=r1 ")
        XCTAssertEqual([all.rack, all.power, all.zone], ["r1", nil, "z"])
        XCTAssertEqual(all.cost, 3)
        for (text, word) in [("rack", "'rack'"), ("rack=", "'rack='"), ("rack=a rack=b", "'rack'"), ("row=1", "'row'"), ("cost=-1", "'-1'"), ("cost=x", "'x'"), ("cost=1000001", "'1000001'"),
                             ("rack=" + String(repeating: "x", count: 65), "65 bytes")] {
            XCTAssertThrowsError(try labels(text), text) { XCTAssertTrue("\($0)".contains(word), "\($0)") }
        }
    }
}
