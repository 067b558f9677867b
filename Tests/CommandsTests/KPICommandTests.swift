import XCTest
@testable import Commands
@testable import ControlProtocol

final class KPICommandTests: XCTestCase {
    private let pair = KPIPage(host: "a", domain: "web1", uuid: "u", intervalSeconds: 5, columns: ["p_cpu_time_percent", "s_host_load_1m", "p_host_load_1m"],
                               times: [1_700_000_000_000, 1_700_000_005_250], rows: [[12.5, 0.25, 1], [100, nil]])
    private let host = KPIPage(host: "a", intervalSeconds: 5, columns: ["host_storage_write_ms", "host_storage_write_ms@/a,b"], times: [1000], rows: [[1.5, 1.5]])

    private func run(_ page: KPIPage, _ words: String...) throws -> (outcome: Outcome, requests: [String]) {
        var response = ControlResponse()
        response.kpi = page
        let service = try FakeService(response)
        return (Harness().run(["kpi"] + words + ["--socket", service.path]), service.requests)
    }

    func testTheTableHasBothSides() throws {
        let (outcome, requests) = try run(pair, "web1", "--since", "1h")
        XCTAssertEqual(outcome.code, 0)
        XCTAssertEqual(outcome.out, """
            KPI               PRIMARY   MEAN  MAX  SHADOW   MEAN    MAX
            cpu_time_percent      100  56.25  100       -      -      -
            host_load_1m            -      1    1       -  0.250  0.250

            """)
        XCTAssertEqual(outcome.err, "2 samples, the last of 2023-11-14T22:13:25.250Z; 1 without the shadow's side\n")
        XCTAssertTrue(requests.first?.contains("\"since_ms\":") == true, "\(requests)")
    }

    func testRowsForPrograms() throws {
        XCTAssertEqual(try run(pair, "web1", "--format", "csv", "-q").outcome.out, """
            timestamp,p_cpu_time_percent,p_host_load_1m,s_host_load_1m
            1700000000.000,12.5,1.0,0.25
            1700000005.250,100.0,,

            """)
        XCTAssertEqual(try run(host, "--format", "csv", "-q").outcome.out, """
            timestamp,host_storage_write_ms,"host_storage_write_ms@/a,b"
            1.000,1.5,1.5

            """)
        let json = try run(pair, "web1", "--format", "json").outcome.out
        XCTAssertTrue(json.contains("\"domain\" : \"web1\"") && json.contains("\"interval_seconds\" : 5") && json.contains("\"schema\" : 1"), json)
        XCTAssertTrue(json.contains("\"time\" : \"2023-11-14T22:13:20.000Z\""), json)
    }

    func testUsage() throws {
        for (words, message) in [
            (["--since", "0s"], "'0s' is no time"), (["--since", "soon"], "'soon' is no time"), (["--since", "400d"], "'400d' is no time"),
            (["--format", "xml"], "use table, csv or json"), (["web1", "--host"], "exclude each other"),
        ] {
            let outcome = Harness().run(["kpi", "--socket", "/nonexistent"] + words)
            XCTAssertEqual(outcome.code, 64)
            XCTAssertTrue(outcome.err.contains(message), outcome.err)
        }
        XCTAssertEqual(try run(KPIPage(host: "a", intervalSeconds: 0), "--since", "2d").outcome.err,
                       "Nothing is measured on a at the moment: telemetry_interval is 0\nNo sample in that time\n")
    }

    func testFigures() {
        XCTAssertEqual([0, 3, 12345.6, 0.12345, 45.678, 123.45].map { KPIText.figure($0) }, ["0", "3", "12346", "0.123", "45.68", "123.5"])
        XCTAssertEqual([nil, .nan, 1e20].map { KPIText.figure($0) }, ["-", "-", "1e+20"])
    }
}
