import Foundation
import XCTest

extension TwoHosts {
    /// Nothing of a protection is left on either host: no record, no guard file, no socket, no worker.
    func assertNoTraces(of domain: String, file: StaticString = #filePath, line: UInt = #line) throws {
        var left: [String] = []
        _ = try? waitUntil("all traces are gone", limit: 5) {
            left = Host.allCases.flatMap(traces)
            return left.isEmpty
        }
        XCTAssertEqual(left, [], file: file, line: line)
    }

    private func traces(_ host: Host) -> [String] {
        func files(_ folder: String) -> [String] { ((try? FileManager.default.contentsOfDirectory(atPath: root(host) + folder)) ?? []).map { "\(host.name):\(folder)/\($0)" } }
        let workers = service(host).workers.map { "\(host.name): worker \($0)" }
        // The journal of events, the series of measurements and who came here are the host's, not a protection's.
        return files("/var/lib/shadow-virt").filter { !$0.hasSuffix("/events.jsonl") && !$0.hasSuffix("/telemetry") && !$0.hasSuffix("/drift") && !$0.hasSuffix("/host") } + files("/run/shadow-virt").filter { !$0.hasSuffix("/control.sock") } + workers
    }
}
