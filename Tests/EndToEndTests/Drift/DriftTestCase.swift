import Foundation
import XCTest

/// Hosts that measure themselves every second, and what they say of drift.
class DriftTestCase: HostsTestCase {
    override class var configuration: [String] { ["telemetry_interval = 1", "probe_directories = [ \"/var/lib/libvirt/images\" ]"] }

    struct Event: Decodable {
        var kind: String
        var domain: String?
        var message: String
        var details: [String: String]?
    }

    struct Drift: Decodable {
        struct Domain: Decodable {
            struct Contribution: Decodable {
                var kpi: String
                var score: Double
                var side: String?
            }
            var domain: String
            var learning: Bool
            var samples: Int
            var score: Double?
            var side: String?
            var contributions: [Contribution]
            var decision: String
            var on_drift: String
        }
        var domains: [Domain]
    }

    struct Figures: Decodable {
        struct Domain: Decodable {
            var domain: String
            var role: String
            var interval_ms: Double
            var interval_reason: String?
        }
        var domains: [Domain]
    }

    private static let kinds: Set = ["drift", "drift_notice", "interval", "warm_swap_began", "warm_swap", "warm_swap_failed", "host_suspect", "host_cleared", "diagnosed"]

    /// Of our kinds, on a host.
    func events(_ host: Host) throws -> [Event] {
        let result = try hosts.shadowVirt(host, "events", "--format", "json")
        try require(result.succeeded, "events: \(result.summary)")
        return result.out.split(separator: "\n").compactMap { try? JSONDecoder().decode(Event.self, from: Data($0.utf8)) }.filter { Self.kinds.contains($0.kind) }
    }

    func waitForEvent(_ host: Host, _ kind: String, limit: Double = 25, where passes: (Event) -> Bool = { _ in true }) throws -> Event {
        var found: Event?
        try waitUntil("an event \(kind) on \(host.name) (\((try? events(host).map { "\($0.kind): \($0.message)" }) ?? []))", limit: limit, every: 0.2) {
            found = try events(host).last { $0.kind == kind && passes($0) }
            return found != nil
        }
        return try XCTUnwrap(found)
    }

    func drift(_ host: Host, _ guest: LedgerGuest) throws -> Drift.Domain? {
        // It ends with 2 on an alarm.
        let result = try hosts.run(host, [TwoHosts.binary, "drift", "--format", "json", "-q"])
        try require(result.succeeded || result.status == 2, "drift: \(result.summary)")
        return try JSONDecoder().decode(Drift.self, from: Data(result.out.utf8)).domains.first { $0.domain == guest.name }
    }

    func figures(_ guest: LedgerGuest) throws -> Figures.Domain {
        let result = try hosts.shadowVirt(guest.home, "status", "--format", "json")
        return try XCTUnwrap(JSONDecoder().decode(Figures.self, from: Data(result.out.utf8)).domains.first { $0.domain == guest.name && $0.role == "primary" })
    }

    /// Host A was left: it is suspect on both hosts, gets no guests, and has a bundle of what there was to see, with all that is named.
    func isolated(_ guest: LedgerGuest, because text: String) throws {
        for host in Host.allCases {
            try waitUntil("\(host.name) knows that a is suspect", limit: 10) { try hosts.shadowVirt(host, "hosts").out.contains("suspect") }
            let listed = try hosts.shadowVirt(host, "hosts")
            XCTAssertEqual(listed.status, 2, listed.summary)
            XCTAssertTrue(listed.out.contains(text), listed.out)
        }
        let refused = try guest.tryToProtect()
        XCTAssertFalse(refused.succeeded)
        XCTAssertTrue(refused.err.contains("\(Host.a.name) is suspect since"), refused.summary)
        let made = try waitForEvent(.a, "diagnosed")
        let path = try XCTUnwrap(made.details?["path"])
        let listing = try hosts.run(.a, ["tar", "-tzf", path])
        try require(listing.succeeded, listing.summary)
        for file in ["reason.txt", "drift.json", "health.json", "events.jsonl", "status.json", "kpi-host/"] { XCTAssertTrue(listing.out.contains("/" + file), "\(file): \(listing.out)") }
        XCTAssertTrue(try hosts.run(.a, ["stat", "-c", "%a", path]).out.hasPrefix("600"))
    }
}
