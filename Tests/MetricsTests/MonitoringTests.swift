import Foundation
import XCTest
@testable import Metrics

/// What ships for Prometheus and Grafana, checked by Prometheus' own tool, and against the metrics that there are.
final class MonitoringTests: XCTestCase {
    private static let folder = Tools.repository + "/examples/monitoring"
    /// Every name that a query may use.
    private static let names = Set(Samples.families().flatMap { $0.kind == .summary ? [$0.name, $0.name + "_sum", $0.name + "_count"] : [$0.name] } + ["up"])

    private var scratch = ""

    override func setUpWithError() throws {
        scratch = NSTemporaryDirectory() + "/monitoring-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
    }

    override func tearDown() { try? FileManager.default.removeItem(atPath: scratch) }

    /// Lint and parser: names, units, help texts, escapes.
    func testExposition() throws {
        let promtool = try Tools.promtool()
        for domains in [[], [Samples.domain()], [Samples.domain("we\"b\\1\n", .shadow, .degraded), Samples.domain("db"), Samples.domain("größe", .primary, .inDoubt)]] {
            let result = try Tools.run([promtool, "check", "metrics"], input: ExpositionFormat.text.render(Samples.families(domains)))
            XCTAssertEqual(result.status, 0, result.output)
            XCTAssertEqual(result.output, "")
        }
        let bad = try Tools.run([promtool, "check", "metrics"], input: "# TYPE x_total gauge\nx_total 1\n")
        XCTAssertNotEqual(bad.status, 0, "it has no help and a gauge's name: \(bad.output)")
    }

    func testAlertRules() throws {
        let promtool = try Tools.promtool()
        let rules = Self.folder + "/shadow-virt-alerts.yml"
        let checked = try Tools.run([promtool, "check", "rules", rules])
        XCTAssertEqual(checked.status, 0, checked.output)
        // Prometheus 2.42 has no --lint-fatal for duplicates; it says SUCCESS and the number.
        XCTAssertTrue(checked.output.contains("SUCCESS: 15 rules found"), checked.output)

        try FileManager.default.copyItem(atPath: rules, toPath: scratch + "/shadow-virt-alerts.yml")
        try FileManager.default.copyItem(atPath: Tools.repository + "/Tests/MetricsTests/Fixtures/alerts_test.yml", toPath: scratch + "/alerts_test.yml")
        let tested = try Tools.run([promtool, "test", "rules", "alerts_test.yml"], in: scratch)
        XCTAssertEqual(tested.status, 0, tested.output)
    }

    func testScrapeConfiguration() throws {
        let promtool = try Tools.promtool()
        for name in ["prometheus.yml", "shadow-virt-alerts.yml"] { try FileManager.default.copyItem(atPath: "\(Self.folder)/\(name)", toPath: "\(scratch)/\(name)") }
        let checked = try Tools.run([promtool, "check", "config", "prometheus.yml"], in: scratch)
        XCTAssertEqual(checked.status, 0, checked.output)
    }

    func testAlertsUseMetricsThatThereAre() throws {
        let text = try String(contentsOfFile: Self.folder + "/shadow-virt-alerts.yml", encoding: .utf8)
        let used = metricNames(text)
        XCTAssertGreaterThan(used.count, 5)
        XCTAssertEqual(used.subtracting(Self.names), [])
    }

    /// Each query of the dashboard as a rule, so that promtool parses it.
    func testDashboard() throws {
        let object = try JSONSerialization.jsonObject(with: Data(contentsOf: URL(fileURLWithPath: Self.folder + "/grafana-dashboard.json")))
        let dashboard = try XCTUnwrap(object as? [String: Any])
        var queries: [String] = []
        collect(dashboard, &queries)
        XCTAssertGreaterThan(queries.count, 25)
        let used = queries.reduce(into: Set<String>()) { $0.formUnion(metricNames($1)) }
        XCTAssertEqual(used.subtracting(Self.names), [], "the dashboard asks for what there is not")
        let shown = Set(DomainMetrics.definitions.map(\.name))
        XCTAssertEqual(shown.subtracting(used.map { $0.replacingOccurrences(of: "pause_seconds_sum", with: "pause_seconds") }).sorted(),
                       ["shadowvirt_disk_ready", "shadowvirt_drift_score", "shadowvirt_interval_seconds", "shadowvirt_lag_epochs", "shadowvirt_last_commit_age_seconds", "shadowvirt_state_changed_timestamp_seconds"],
                       "what the dashboard leaves out")

        let panels = try XCTUnwrap(dashboard["panels"] as? [[String: Any]])
        XCTAssertEqual(Set(panels.compactMap { $0["id"] as? Int }).count, panels.count, "numbers of panels")
        for panel in panels { XCTAssertFalse((panel["targets"] as? [Any] ?? []).isEmpty, "\(panel["title"] ?? "")") }

        let promtool = try Tools.promtool()
        let rules = queries.enumerated().map { "      - record: query:\($0.offset)\n        expr: '\(concrete($0.element).replacingOccurrences(of: "'", with: "''"))'\n" }.joined()
        try "groups:\n  - name: dashboard\n    rules:\n\(rules)".write(toFile: scratch + "/queries.yml", atomically: true, encoding: .utf8)
        let checked = try Tools.run([promtool, "check", "rules", scratch + "/queries.yml"])
        XCTAssertEqual(checked.status, 0, checked.output)
        XCTAssertTrue(checked.output.contains("\(queries.count) rules found"), checked.output)
    }

    /// Every metric stands in the README, and nothing stands there that there is not.
    func testReadme() throws {
        let readme = try String(contentsOfFile: Tools.repository + "/README.md", encoding: .utf8)
        let own = Set(Samples.families().map(\.name).filter { $0.hasPrefix("shadowvirt_") })
        XCTAssertEqual(own.subtracting(metricNames(readme)), [])
        XCTAssertEqual(metricNames(readme).subtracting(Self.names), [])
    }

    // MARK: Help

    private func collect(_ value: Any, _ queries: inout [String]) {
        if let object = value as? [String: Any] {
            if let query = object["expr"] as? String { queries.append(query) }
            for inner in object.values { collect(inner, &queries) }
        } else if let list = value as? [Any] {
            for inner in list { collect(inner, &queries) }
        }
    }

    /// As Grafana fills its variables in.
    private func concrete(_ query: String) -> String {
        query.replacingOccurrences(of: "$__rate_interval", with: "1m").replacingOccurrences(of: "$domain", with: ".*")
    }

    private func metricNames(_ text: String) -> Set<String> {
        guard let pattern = try? NSRegularExpression(pattern: #"\b(shadowvirt|process)_[a-z_]*[a-z]\b"#) else { return [] }
        let whole = NSRange(text.startIndex..., in: text)
        return Set(pattern.matches(in: text, range: whole).compactMap { Range($0.range, in: text).map { String(text[$0]) } })
    }
}
