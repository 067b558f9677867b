import ControlProtocol
import XCTest
@testable import Metrics

final class ExpositionTests: XCTestCase {
    func testEscaping() {
        let family = MetricFamily("x_total", .counter, "a \"b\" \\ c\nd", [.init(1, labels: [.init("domain", "we\"b\\1\n}"), .init("peer", "größe")])])
        XCTAssertEqual(ExpositionFormat.text.render([family]), """
            # HELP x_total a "b" \\\\ c\\nd
            # TYPE x_total counter
            x_total{domain="we\\"b\\\\1\\n}",peer="größe"} 1

            """)
        XCTAssertEqual(ExpositionFormat.openMetrics.render([family]), """
            # HELP x a \\"b\\" \\\\ c\\nd
            # TYPE x counter
            x_total{domain="we\\"b\\\\1\\n}",peer="größe"} 1
            # EOF

            """)
    }

    func testNumbers() {
        let values: [(Double, String)] = [(0, "0"), (-3, "-3"), (0.00062, "0.00062"), (4_294_967_296, "4294967296"), (1e300, "1e+300"), (.nan, "NaN"), (.infinity, "+Inf"), (-.infinity, "-Inf")]
        for (value, text) in values {
            XCTAssertEqual(ExpositionFormat.text.render([MetricFamily("x", .gauge, "h", [.init(value)])]), "# HELP x h\n# TYPE x gauge\nx \(text)\n")
        }
        XCTAssertEqual(ExpositionFormat.text.render([MetricFamily("x", .gauge, "h", [])]), "", "nothing to tell")
    }

    func testAccept() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        let wanted: [(String, ExpositionFormat)] = [
            (prometheus, .openMetrics), ("Application/OpenMetrics-Text; version=1.0.0 ; charset=utf-8", .openMetrics), ("application/openmetrics-text;version=1.0.0;q=0", .text),
            ("application/openmetrics-text", .text), ("application/openmetrics-text;version=0.0.1", .text), ("text/plain", .text), ("*/*", .text), ("", .text), (";;,,;q=,", .text),
        ]
        for (accept, format) in wanted { XCTAssertEqual(ExpositionFormat.preferred(accept: accept), format, accept) }
    }

    // MARK: What is told

    private func value(_ series: String, _ domains: [DomainStatus]) -> String? {
        let prefix = series + " "
        return ExpositionFormat.text.render(Samples.families(domains)).split(separator: "\n").first { $0.hasPrefix(prefix) }.map { String($0.dropFirst(prefix.count)) }
    }

    func testValuesOfAPrimary() {
        let labels = "domain=\"web1\",uuid=\"8f8a7c1e-0000-4000-8000-000000000001\",role=\"primary\",peer=\"b\",engine=\"continuous\""
        let expected = [
            "protection_state{\(labels),state=\"protected\"}": "1", "protection_state{\(labels),state=\"in_doubt\"}": "0",
            "state_changed_timestamp_seconds{\(labels)}": "1714557600.25", "rpo_seconds{\(labels)}": "0.03125", "last_commit_age_seconds{\(labels)}": "0.0125",
            "interval_seconds{\(labels)}": "0.02", "lag_bytes{\(labels)}": "3355443", "pause_seconds{\(labels),quantile=\"0.5\"}": "0.00062",
            "pause_seconds_sum{\(labels)}": "7.7", "pause_seconds_count{\(labels)}": "12345", "epochs_captured_total{\(labels)}": "12345",
            "epochs_committed_total{\(labels)}": "12344", "dirtied_bytes_total{\(labels)}": "4294967296", "transferred_bytes_total{\(labels)}": "1073741824",
            "resent_bytes_total{\(labels)}": "9", "disk_transferred_bytes_total{\(labels)}": "7", "disk_writes_total{\(labels)}": "8",
            "disk_ready{\(labels),disk=\"vda\"}": "1", "disk_ready{\(labels),disk=\"vdb\"}": "0", "handovers_total{\(labels),kind=\"swap\"}": "2",
            "handovers_total{\(labels),kind=\"failover\"}": "1", "failures_total{\(labels)}": "4", "resyncs_total{\(labels)}": "3", "degraded_seconds_total{\(labels)}": "1.5",
        ]
        for (series, text) in expected { XCTAssertEqual(value("shadowvirt_" + series, [Samples.domain()]), text, series) }
        XCTAssertNil(value("shadowvirt_disk_ready{\(labels),disk=\"sdc\"}", [Samples.domain()]), "a shared disk is not copied")
        XCTAssertEqual(value("shadowvirt_build_info{version=\"0.1.0\",host=\"a\"}", []), "1")
        XCTAssertEqual(value("shadowvirt_events_total{kind=\"swap\"}", []), "2")
    }

    func testAShadowHasNoPauseAndNothingIsToldTwice() {
        let text = ExpositionFormat.text.render(Samples.families([Samples.domain("web1", .shadow), Samples.domain("db"), Samples.domain("db", .shadow)]))
        XCTAssertFalse(text.split(separator: "\n").contains { $0.contains("pause_seconds") && $0.contains("role=\"shadow\"") }, text)
        let series = text.split(separator: "\n").filter { !$0.hasPrefix("#") }.map { $0.split(separator: " ").dropLast().joined(separator: " ") }
        XCTAssertEqual(Set(series).count, series.count)
        for name in DomainMetrics.definitions.map(\.name) { XCTAssertLessThanOrEqual(text.components(separatedBy: "# TYPE \(name) ").count, 2, name) }
    }

    func testWhatIsNotKnownIsLeftOut() {
        let fresh = DomainStatus(domain: "x", uuid: "u", role: .primary, peer: "b", engine: "periodic", state: .syncing, reason: "", since: "now", configuredIntervalMs: 1000)
        let text = ExpositionFormat.text.render(DomainMetrics.families(Samples.status([fresh])))
        for name in ["rpo_seconds", "last_commit_age", "state_changed", "pause_seconds", "disk_", "first_copy", "handovers"] { XCTAssertFalse(text.contains(name), text) }
        XCTAssertTrue(text.contains("shadowvirt_lag_bytes{domain=\"x\""), text)
    }

    func testProcessMetrics() throws {
        let families = Dictionary(uniqueKeysWithValues: ServiceMetrics.process().map { ($0.name, $0.samples.first?.value ?? .nan) })
        XCTAssertGreaterThan(try XCTUnwrap(families["process_resident_memory_bytes"]), 1_048_576)
        XCTAssertLessThan(try XCTUnwrap(families["process_resident_memory_bytes"]), try XCTUnwrap(families["process_virtual_memory_bytes"]))
        XCTAssertGreaterThan(try XCTUnwrap(families["process_open_fds"]), 2)
        let age = Date().timeIntervalSince1970 - (try XCTUnwrap(families["process_start_time_seconds"]))
        XCTAssertTrue((-2...7200).contains(age), "\(age)")
        let before = try XCTUnwrap(families["process_cpu_seconds_total"])
        let end = Date().addingTimeInterval(0.3)
        while Date() < end {}
        let after = ServiceMetrics.process().first { $0.name == "process_cpu_seconds_total" }?.samples.first?.value
        XCTAssertGreaterThan(try XCTUnwrap(after), before)
    }
}
