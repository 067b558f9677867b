import Configuration
import ControlProtocol
import Foundation
import Orchestration
import Platform
import XCTest
@testable import Service

/// Administrators who are quicker than a service that has just begun.
final class TakeUpTests: XCTestCase {
    private let path = "/tmp/shadow-virt-takeup-\(UUID().uuidString.prefix(8)).sock"
    private let folder = NSTemporaryDirectory() + "/takeup-\(UUID().uuidString)"

    override func tearDown() {
        unlink(path)
        try? FileManager.default.removeItem(atPath: folder)
    }

    /// A guest whose hand-over is in doubt is not known before its record is read: protected anew it would run here, and perhaps elsewhere, too.
    func testNothingIsChangedBeforeTheRecordsAreTakenUp() throws {
        var configuration = ServiceConfiguration(environment: [:])
        configuration.stateDirectory = folder
        let registry = Registry(environment: HostEnvironment(configuration: configuration, secretBytes: nil) { throw ControlFailure("no libvirt in this test") })
        let listener = try ControlSocket.listen(path: path).release()
        let server = ControlServer(registry: registry, configuration: configuration)
        // The thread that accepts lives as long as the process, as it does in the service.
        startThread("control-accept") { server.accept(on: listener) }

        let verbs: [ControlRequest.Verb] = [.protect, .unprotect, .swap, .failover]
        let answers = Guarded<[String]>([])
        for verb in verbs {
            startThread("client") { [path] in
                let answer = Result { try ControlClient(path: path).exchange(ControlRequest(verb, domain: "web1")) }
                answers.change { $0.append("\(answer)") }
            }
        }
        XCTAssertNil(try ControlClient(path: path).exchange(ControlRequest(.status)).failure, "Who only looks need not wait")
        usleep(300_000)
        XCTAssertEqual(answers.read { $0 }, [])
        registry.resume()
        XCTAssertNotNil(answers.wait(until: MonotonicTime.now.adding(milliseconds: 10_000)) { $0.count == verbs.count ? true : nil })
        XCTAssertTrue(answers.read { $0 }.allSatisfy { !$0.contains("has just started") }, "\(answers.read { $0 })")
    }
}
