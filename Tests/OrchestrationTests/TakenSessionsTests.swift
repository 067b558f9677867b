import Configuration
import ControlProtocol
import Foundation
import XCTest
@testable import Libvirt
@testable import Orchestration

/// What a host tells of sessions by which guests came to it, after the shadow that had them is gone.
final class TakenSessionsTests: XCTestCase {
    private let folder = NSTemporaryDirectory() + "/taken-\(UUID().uuidString)"
    override func tearDown() { try? FileManager.default.removeItem(atPath: folder) }

    func testSurvivesARestart() {
        let session = UUID()
        let first = TakenSessions(stateDirectory: folder)
        XCTAssertFalse(first.contains(session))
        first.note(session)
        XCTAssertTrue(first.contains(session), "At once")
        XCTAssertFalse(TakenSessions(stateDirectory: folder).contains(session), "Not kept yet")
        first.keep()
        XCTAssertTrue(TakenSessions(stateDirectory: folder).contains(session))
    }

    func testTheOldestGiveWay() {
        let taken = TakenSessions(stateDirectory: folder)
        let sessions = (0...TakenSessions.most).map { _ in UUID() }
        sessions.forEach(taken.note)
        XCTAssertFalse(taken.contains(sessions[0]))
        XCTAssertTrue(sessions.dropFirst().allSatisfy(taken.contains))
    }

    /// The former primary did not hear the answer to its order, and asks while the guest is being protected from here, or after it has ended: told that nothing is
    /// known it would let its own copy run.
    func testAFormerPrimaryIsToldThatTheGuestCame() throws {
        let connection = try Connection.open("test:///default")
        defer { connection.close() }
        var configuration = ServiceConfiguration(environment: [:])
        configuration.stateDirectory = folder
        let environment = HostEnvironment(configuration: configuration, secretBytes: nil) { connection }
        let registry = Registry(environment: environment)
        let domain = try connection.lookup(name: "test"), session = UUID()
        func ask(_ session: UUID, _ uuid: String = domain.uuid) -> PeerResponse { registry.answer(PeerRequest(.query, host: "hostA", session: session, uuid: uuid)) }

        XCTAssertEqual(ask(session).phase, .unknown)
        XCTAssertNil(ask(session).hasRun, "A domain of that UUID runs, but it did not come by this session")
        environment.taken.note(session)
        XCTAssertEqual(ask(session).phase, .running)
        XCTAssertEqual(ask(UUID()).phase, .unknown)
        try domain.destroy()
        XCTAssertEqual(ask(session).phase, .unknown)
        XCTAssertEqual(ask(session).hasRun, true)
        XCTAssertEqual(ask(session, UUID().uuidString).hasRun, true, "Not even defined any more")
        XCTAssertNil(ask(UUID()).hasRun)
    }
}
