import Foundation
import XCTest

/// A host whose hardware says that it is about to fail, and a guest that leaves it by itself.
final class WarmSwapTests: HostsTestCase {
    override class var configuration: [String] { ["telemetry_interval = 1", "probe_directories = [ \"/var/lib/libvirt/images\" ]"] + HostBMC.configuration }

    private struct Event: Decodable {
        var kind: String
        var domain: String?
        var message: String
        var details: [String: String]?
    }

    private struct Drift: Decodable {
        struct Domain: Decodable {
            var domain: String
            var learning: Bool
            var score: Double?
            var decision: String
            var on_drift: String
        }
        var domains: [Domain]
    }

    private struct Figures: Decodable {
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
    private func events(_ host: Host) throws -> [Event] {
        let result = try hosts.shadowVirt(host, "events", "--format", "json")
        try require(result.succeeded, "events: \(result.summary)")
        return result.out.split(separator: "\n").compactMap { try? JSONDecoder().decode(Event.self, from: Data($0.utf8)) }.filter { Self.kinds.contains($0.kind) }
    }

    private func waitForEvent(_ host: Host, _ kind: String, limit: Double = 25, where passes: (Event) -> Bool = { _ in true }) throws -> Event {
        var found: Event?
        try waitUntil("an event \(kind) on \(host.name) (\((try? events(host).map { "\($0.kind): \($0.message)" }) ?? []))", limit: limit, every: 0.2) {
            found = try events(host).last { $0.kind == kind && passes($0) }
            return found != nil
        }
        return try XCTUnwrap(found)
    }

    private func drift(_ host: Host, _ guest: LedgerGuest) throws -> Drift.Domain? {
        let result = try hosts.run(host, [TwoHosts.binary, "drift", "--format", "json", "-q"])
        try require(result.succeeded, "drift: \(result.summary)")
        return try JSONDecoder().decode(Drift.self, from: Data(result.out.utf8)).domains.first { $0.domain == guest.name }
    }

    private func figures(_ guest: LedgerGuest) throws -> Figures.Domain {
        let result = try hosts.shadowVirt(guest.home, "status", "--format", "json")
        return try XCTUnwrap(JSONDecoder().decode(Figures.self, from: Data(result.out.utf8)).domains.first { $0.domain == guest.name && $0.role == "primary" })
    }

    /// A line more for both hosts' configuration, read while the service runs.
    private func configure(_ line: String) throws {
        for host in Host.allCases {
            let path = try hosts.root(host) + "/etc/shadow-virt/shadow-virt.conf"
            try (String(contentsOfFile: path, encoding: .utf8) + line + "\n").write(toFile: path, atomically: true, encoding: .utf8)
            guard let pid = try hosts.service(host).pid else { throw TestFailure("No service on \(host.name)") }
            kill(pid, SIGHUP)
        }
    }

    func testAHostThatIsAboutToFailIsLeft() throws {
        if let obstacle = HostBMC.obstacle { throw XCTSkip("Tests with a BMC skipped: \(obstacle)") }
        leaveDisorder()
        let guest = try runningGuest()
        let bmcs = try Host.allCases.map { try HostBMC(hosts, $0) }
        defer { bmcs.forEach { $0.stop() } }
        // They read their BMC with their start, and seldom while it does not answer.
        for host in Host.allCases {
            try hosts.service(host).stop()
            try hosts.service(host).start()
            try hosts.waitForService(host)
        }
        try guest.protect(interval: "100ms")
        try guest.waitUntilProtected()

        // In health: watched, and nothing to tell.
        try waitUntil("its drift is watched", limit: 10) { try drift(.a, guest) != nil }
        XCTAssertEqual(try drift(.a, guest)?.learning, true)
        XCTAssertEqual(try figures(guest).interval_ms, 100, accuracy: 0.5)
        try waitUntil("the interval has a reason", limit: 10) { try figures(guest).interval_reason == "as configured" }
        XCTAssertEqual(try events(.a).map(\.kind), [])

        // In doubt, and told to notify: shorter epochs, one event, no swap.
        var begin = Clock.seconds
        try bmcs[0].heat(95)
        let shortened = try waitForEvent(.a, "interval") { $0.details?["mode"] == "shortened" }
        report(String(format: "critical temperature to a shorter interval: %.1f s", Clock.seconds - begin))
        XCTAssertTrue(shortened.message.contains("CPU Temp"), shortened.message)
        try waitUntil("epochs come every 25 ms", limit: 5) { try figures(guest).interval_ms < 30 }
        XCTAssertEqual(try figures(guest).interval_reason?.hasPrefix("shortened: CPU Temp"), true)
        let before = try XCTUnwrap(hosts.status(.a, guest.name)), at = Clock.seconds
        sleep(3)
        let rate = Double(try XCTUnwrap(hosts.status(.a, guest.name)).committed - before.committed) / (Clock.seconds - at)
        report(String(format: "epochs at 100 ms, shortened: %.1f a second", rate))
        XCTAssertGreaterThan(rate, 14, "10 a second without it")
        let notice = try waitForEvent(.a, "drift_notice")
        XCTAssertEqual(notice.details?["obstacle"], "policy", notice.message)
        XCTAssertEqual(try events(.a).filter { $0.kind == "drift_notice" }.count, 1, "said once")
        XCTAssertEqual(try drift(.a, guest)?.on_drift, "notify")
        XCTAssertEqual(try hosts.status(.a, guest.name)?.state, "protected")

        // Told to swap: it goes.
        begin = Clock.seconds
        try configure("on_drift = \"swap\"")
        try guest.followToOther(mayRepeat: 0)
        let swapped = try waitForEvent(.a, "warm_swap")
        report(String(format: "allowed to swap, and there: %.1f s, outage %@ ms", Clock.seconds - begin, swapped.details?["outage_ms"] ?? "?"))
        XCTAssertTrue(swapped.message.contains("CPU Temp"), swapped.message)
        try guest.waitForTicks(50)
        try guest.checkBooks()
        try isolated(guest)
        try bmcs[0].heat(40)
        try trustedAgain(guest)

        // The other host is hot as well, within the hour.
        try bmcs[1].heat(95)
        let second = try waitForEvent(.b, "drift_notice")
        XCTAssertEqual(second.details?["obstacle"], "hourly", second.message)
        XCTAssertTrue(try drift(.b, guest)?.decision.contains("at most one such swap an hour") == true)
        XCTAssertEqual(guest.home, .b)
        XCTAssertEqual(try hosts.status(.b, guest.name)?.state, "protected")
        try guest.waitForTicks(50)
        try guest.checkBooks()
        for host in Host.allCases { print(try hosts.shadowVirt(host, "events").out, try hosts.shadowVirt(host, "drift").out, separator: "\n") }
    }

    /// The host that was left: suspect on both, without placements, and with a bundle.
    private func isolated(_ guest: LedgerGuest) throws {
        for host in Host.allCases {
            try waitUntil("\(host.name) knows that a is suspect", limit: 10) { try hosts.shadowVirt(host, "hosts").out.contains("suspect") }
            let listed = try hosts.shadowVirt(host, "hosts")
            XCTAssertEqual(listed.status, 2, listed.summary)
            XCTAssertTrue(listed.out.contains("CPU Temp"), listed.out)
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
        let other = try hosts.shadowVirt(.b, "diagnose", Host.a.name)
        XCTAssertTrue(other.out.contains("/diagnose/\(Host.a.name)-") && other.out.contains(" on \(Host.a.name)"), other.summary)
    }

    private func trustedAgain(_ guest: LedgerGuest) throws {
        let cleared = try hosts.shadowVirt(.b, "hosts", "clear", Host.a.name)
        try require(cleared.succeeded, cleared.summary)
        for host in Host.allCases { XCTAssertEqual(try hosts.shadowVirt(host, "hosts").status, 0, host.name) }
        try guest.protect()
        try guest.waitUntilProtected()
    }
}
