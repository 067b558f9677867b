import XCTest
@testable import Configuration

final class TelemetryKeysTests: XCTestCase {
    func testWhatIsWrongIsNamed() {
        let nine = (1...9).map { "\"/\($0)\"" }.joined(separator: ", ")
        for (text, expected) in [
            ("telemetry_interval = 3601", "3601 is out of range"), ("telemetry_interval = \"5s\"", "Expected a whole number"),
            ("guest_exec = 2", "2 is out of range. Use 0 to 1"),
            ("probe_directories = \"/srv\"", "Expected a list"), ("probe_directories = [ \"srv\" ]", "'srv' is not an absolute path"),
            ("probe_directories = [ \(nine) ]", "There are 9 folders"),
        ] {
            XCTAssertThrowsError(try ServiceConfiguration(bytes: Array(text.utf8), file: "t.conf", environment: [:]), text) {
                XCTAssertTrue("\($0)".contains(expected), "\($0)")
            }
        }
    }
}
