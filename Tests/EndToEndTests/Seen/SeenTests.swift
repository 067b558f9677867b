import Foundation
import XCTest

/// What is seen of a protected guest from outside: /metrics, `events`, `top`; and that looking costs the guest nothing.
final class SeenTests: HostsTestCase {
    func testScrapesDuringEpochsThenASwapIsSeen() throws {
        let guest = try protectedGuest(on: .a)
        // As systemd-journald's neighbours do it: over a pipe, until it is told to stop.
        let feed = try hosts.folder + "/events.jsonl"
        let follower = try ChildProcess([TwoHosts.script, "exec", try hosts.folder, Host.a.rawValue, TwoHosts.binary, "events", guest.name, "--follow", "--format", "json"], out: feed)
        defer {
            follower.signal(SIGKILL)
            _ = follower.wait(limit: 5)
        }

        // Epochs of as long a time without a scrape, and with a hundred of them.
        let quiet = try epochsDuring { usleep(3_000_000) }
        let scraped = try epochsDuring {
            let result = try hosts.run(.a, ["bash", "-c", "for i in $(seq 100); do exec 3<>/dev/tcp/127.0.0.1/16521; printf 'GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n' >&3; "
                + "grep -ac '^shadowvirt_rpo_seconds' <&3; exec 3>&-; done | sort | uniq -c"], limit: 60)
            XCTAssertEqual(result.out.trimmed.split(separator: " "), ["100", "1"], result.summary)
        }
        report("metrics: \(String(format: "%.1f", quiet)) epochs/s without, \(String(format: "%.1f", scraped)) during 100 scrapes")
        // The clients, two hundred processes, take their part of two cores; a scrape that held epochs up would cost far more.
        XCTAssertGreaterThan(scraped, quiet * 0.5, "scrapes disturb the epochs")

        // The same figures as `status`.
        let metrics = try scrape(.a)
        let status = try XCTUnwrap(try hosts.status(.a, guest.name))
        XCTAssertEqual(metrics.value("shadowvirt_protection_state", #"state="protected""#), 1)
        XCTAssertEqual(metrics.value("shadowvirt_protection_state", #"state="degraded""#), 0)
        XCTAssertEqual(metrics.value("shadowvirt_interval_seconds"), status.intervalMs / 1000)
        let captured = try XCTUnwrap(metrics.value("shadowvirt_epochs_captured_total"))
        XCTAssertTrue((Double(status.epoch) - 150...Double(status.epoch)).contains(captured), "\(captured) against \(status.epoch)")
        XCTAssertEqual(try XCTUnwrap(metrics.value("shadowvirt_pause_seconds_count")), captured, accuracy: 2)
        let mean = try XCTUnwrap(metrics.value("shadowvirt_pause_seconds_sum")) / captured
        XCTAssertTrue((status.pauseMsMedian / 3000...status.pauseMsMedian / 100).contains(mean), "mean \(mean) s, median \(status.pauseMsMedian) ms")
        XCTAssertEqual(metrics.value("shadowvirt_libvirt_connected"), 1)
        XCTAssertTrue(metrics.text.contains("shadowvirt_build_info{version="), metrics.text)
        XCTAssertEqual(try scrape(.b).value("shadowvirt_protection_state", "role=\"shadow\",peer=\"\(Host.a.name)\",engine=\"continuous\",state=\"protected\""), 1)

        let top = try hosts.shadowVirt(.a, "top", "--once")
        XCTAssertTrue(top.succeeded, top.summary)
        print(top.out)
        let row = try XCTUnwrap(top.out.split(separator: "\n").last?.split(separator: " ").map(String.init))
        XCTAssertEqual(Array(row.prefix(4)), [guest.name, "primary", Host.b.name, "protected"], top.out)
        XCTAssertTrue((10.0...60).contains(Double(row[4]) ?? 0), "epochs a second at 20 ms: \(top.out)")

        try guest.swap()
        try waitUntil("the swap is seen by `events --follow`", limit: 10) { try events(feed).contains { $0.kind == "swap" } }
        let swap = try XCTUnwrap(try events(feed).last { $0.kind == "swap" })
        XCTAssertEqual(swap.domain, guest.name)
        XCTAssertEqual(swap.details?["epochs_lost"], "0")
        XCTAssertNotNil(swap.details?["outage_ms"].flatMap { Double($0) }, "\(swap)")
        XCTAssertEqual(try scrape(.a).value("shadowvirt_handovers_total", #"kind="swap""#), 1)
        let there = try hosts.shadowVirt(.b, "events", guest.name)
        XCTAssertTrue(there.out.contains("activated"), there.summary)
        print(try hosts.shadowVirt(.a, "events", guest.name, "--since", "10m").out)

        // The service is replaced: the follower stays and misses nothing; numbers go on.
        try hosts.service(.a).kill()
        try hosts.waitForService(.a)
        try guest.protect()
        try waitUntil("the shadow's side is seen by the follower", limit: 10) { try events(feed).last?.kind == "began" }
        let numbers = try events(feed).map(\.sequence)
        XCTAssertEqual(numbers, numbers.sorted())
        XCTAssertEqual(Set(numbers).count, numbers.count, "no event twice")
        follower.signal(SIGINT)
        let ended = follower.wait(limit: 5)
        XCTAssertNotNil(ended, "Ctrl-C ends it")
        try guest.waitUntilProtected()
        try guest.checkBooks()
        try guest.checkNeverTwice()
    }

    // MARK: Help

    private struct Event: Decodable {
        var sequence: Int
        var kind: String
        var domain: String?
        var details: [String: String]?
    }

    private struct Metrics {
        var text: String

        /// Of the first series with that name and part of its labels.
        func value(_ name: String, _ labels: String = "") -> Double? {
            text.split(separator: "\n").first { ($0.hasPrefix(name + "{") || $0.hasPrefix(name + " ")) && (labels.isEmpty || $0.contains(labels)) }?.split(separator: " ").last.flatMap { Double($0) }
        }
    }


    private func events(_ path: String) throws -> [Event] {
        let data = FileManager.default.contents(atPath: path) ?? Data()
        return try data[..<(data.lastIndex(of: 10) ?? data.startIndex)].split(separator: 10).map { try JSONDecoder().decode(Event.self, from: Data($0)) }
    }

    private func scrape(_ host: Host) throws -> Metrics {
        let result = try hosts.run(host, ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/16521; printf 'GET /metrics HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n' >&3; cat <&3"])
        try require(result.out.hasPrefix("HTTP/1.1 200 OK"), result.summary)
        return Metrics(text: result.out)
    }

    /// Epochs a second while `body` runs.
    private func epochsDuring(_ body: () throws -> Void) throws -> Double {
        func captured() throws -> Double { try XCTUnwrap(try scrape(.a).value("shadowvirt_epochs_captured_total")) }
        let (before, begin) = (try captured(), Clock.seconds)
        try body()
        let seconds = Clock.seconds - begin
        return (try captured() - before) / seconds
    }
}
