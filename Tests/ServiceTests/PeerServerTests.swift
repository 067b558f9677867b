import Configuration
import ControlProtocol
import Foundation
import Glibc
import Orchestration
import Platform
import XCTest
@testable import Service

/// The peers' port while the service does not yet know what an earlier one left.
final class PeerServerTests: XCTestCase {
    private let folder = NSTemporaryDirectory() + "/peers-\(UUID().uuidString)"

    override func tearDown() { try? FileManager.default.removeItem(atPath: folder) }

    private func configuration() throws -> ServiceConfiguration {
        var configuration = ServiceConfiguration(environment: [:])
        configuration.hostName = "hostB"
        configuration.stateDirectory = folder
        (configuration.keepaliveMs, configuration.peerTimeoutMs) = (200, 1000)
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        return configuration
    }

    /// "Unknown session" about a guest that runs here would let the other side run its copy.
    func testNobodyIsAnsweredBeforeTheRecordsAreTakenUp() throws {
        let environment = HostEnvironment(configuration: try configuration(), secretBytes: nil) { throw ControlFailure("no libvirt in this test") }
        let registry = Registry(environment: environment)
        let listener = try TCP.listen(Endpoint(address: "127.0.0.1", port: 0))
        let port = try TCP.localPort(listener.raw)
        // The thread that accepts lives as long as the process, as it does in the service.
        let server = PeerServer(registry: registry, environment: environment), raw = listener.release()
        startThread("peer-accept") { server.accept(on: raw) }
        let client = PeerClient(name: "hostB", endpoint: Endpoint(address: "127.0.0.1", port: port), secret: .none, host: "hostA", timeoutMs: 2000)
        let question = PeerRequest(.query, host: "hostA", session: UUID(), uuid: UUID().uuidString)

        XCTAssertThrowsError(try client.ask(question)) { error in
            guard let refused = error as? PeerUnreachable else { return XCTFail("\(error)") }
            XCTAssertFalse(refused.mayHaveArrived)
            XCTAssertTrue(refused.reason.contains("hostB has just started"), refused.reason)
        }
        registry.resume()
        XCTAssertEqual(try client.ask(question).phase, .unknown)
    }
}
