import Foundation
import XCTest

/// A host whose hardware says that it is about to fail, and a guest that leaves it by itself.
final class WarmSwapTests: DriftTestCase {
    override class var configuration: [String] { super.configuration + HostBMC.configuration }

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
        try isolated(guest, because: "CPU Temp")
        let other = try hosts.shadowVirt(.b, "diagnose", Host.a.name)
        XCTAssertTrue(other.out.contains("/diagnose/\(Host.a.name)-") && other.out.contains(" on \(Host.a.name)"), other.summary)
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

    private func trustedAgain(_ guest: LedgerGuest) throws {
        let cleared = try hosts.shadowVirt(.b, "hosts", "clear", Host.a.name)
        try require(cleared.succeeded, cleared.summary)
        for host in Host.allCases { XCTAssertEqual(try hosts.shadowVirt(host, "hosts").status, 0, host.name) }
        try guest.protect()
        try guest.waitUntilProtected()
    }
}
