import Configuration
import ControlProtocol
import Foundation
import Platform
import XCTest
@testable import Orchestration

/// Orders and records as a protection takes them, without libvirt and without peers.
final class OrderTests: XCTestCase {
    private let folder = NSTemporaryDirectory() + "/orders-\(UUID().uuidString)"
    private let uuid = UUID().uuidString.lowercased()

    override func setUpWithError() throws { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) }
    override func tearDown() { try? FileManager.default.removeItem(atPath: folder) }

    private func environment() -> HostEnvironment {
        var configuration = ServiceConfiguration(environment: [:])
        (configuration.stateDirectory, configuration.runtimeDirectory) = (folder, folder)
        return HostEnvironment(configuration: configuration, secretBytes: nil) { throw ControlFailure("no libvirt in this test") }
    }

    private func record(_ phase: ProtectionRecord.Phase = .protecting, _ shadows: [ShadowEntry]? = nil) -> ProtectionRecord {
        var record = ProtectionRecord(uuid: uuid, domain: "web1", role: .primary, phase: phase, peer: "hostB", session: UUID(), intervalMs: 20, withoutDisks: true, savedParameters: [:])
        record.shadows = shadows
        return record
    }

    /// Nobody listens there.
    private func peer(_ name: String = "hostB") -> Peer { Peer(name: name, address: PeerAddress(host: "127.0.0.1", port: 1), libvirtURI: "") }

    private func protection(_ record: ProtectionRecord, _ peer: Peer) -> PrimaryProtection {
        PrimaryProtection(resuming: record, environment: environment(), peer: peer) { _ in }
    }

    /// A guest that is destroyed for a host that was told "not in time", and has given up, would run nowhere.
    func testAnAbandonedOrderIsNotCarriedOut() throws {
        let reply = Reply<Void>()
        XCTAssertFalse(PrimaryEvent.yield(reply, to: "hostB").isAbandoned)
        XCTAssertThrowsError(try reply.wait(until: MonotonicTime.now.adding(milliseconds: 10)))
        XCTAssertTrue(PrimaryEvent.yield(reply, to: "hostB").isAbandoned)
        // Too late to be heard.
        reply.give(.success(()))
        XCTAssertThrowsError(try reply.wait(until: .now))

        let open = Reply<Void>()
        startThread("give") { open.give(.success(())) }
        XCTAssertNoThrow(try open.wait(until: MonotonicTime.now.adding(milliseconds: 5000)))
    }

    func testTheProtectionPassesOverAbandonedOrders() {
        let protection = protection(record(), peer())
        let late = Reply<Void>()
        protection.post(.yield(late, to: "hostB"))
        protection.post(.libvirtReconnected)
        XCTAssertThrowsError(try late.wait(until: .now))
        guard case .libvirtReconnected? = protection.next(until: .now) else { return XCTFail("the yield was given out") }
        XCTAssertNil(protection.next(until: .now))
    }

    /// Its shadow's host is spelled otherwise in the configuration by now.
    func testARecordIsTakenUpWhateverTheSpelling() {
        var record = record()
        record.shadows = [ShadowEntry(peer: "hostB", session: record.session, multiple: 3)]
        let protection = protection(record, peer("HOSTB"))
        XCTAssertEqual(protection.slots.map(\.peer.name), ["HOSTB"])
        XCTAssertEqual(protection.slots.map(\.multiple), [3])
        XCTAssertEqual(protection.slots.map(\.session), [record.session])
        XCTAssertTrue(protection.target.read { $0 } === protection.slots[0])
    }

    /// The guest went over, and nobody can tell whether the copy here is gone: it must not be protected, and run, as if it were the guest.
    func testACopyThatIsBeingRemovedIsNotTheGuest() throws {
        let protection = protection(record(.removing), peer())
        protection.start()
        XCTAssertEqual(protection.board.wait(for: [.failedOver], until: MonotonicTime.now.adding(milliseconds: 5000)), .failedOver)
        usleep(500_000)
        XCTAssertEqual(protection.board.state, .failedOver, protection.board.current.reason)
        let reply = Reply<Void>()
        protection.post(.unprotect(reply))
        XCTAssertNoThrow(try reply.wait(until: MonotonicTime.now.adding(milliseconds: 5000)))
    }

    /// Refused, or not in time: whenever the protection ends later, nobody has asked for its replicas to be deleted.
    func testAnUnprotectThatFailedDeletesNothingLater() {
        let registry = Registry(environment: environment())
        let protection = protection(record(), peer())
        registry.entries.change { $0.primaries[uuid] = protection }
        XCTAssertThrowsError(try registry.unprotect(uuid, deleteReplica: true, deadline: .now))
        XCTAssertFalse(protection.ending.read { $0.deletesReplica })
    }

    /// Its shadow was taken away while its administrator's failover was under way, which came to nothing.
    func testAClaimOfAHostWithoutAShadowIsGivenBack() {
        let registry = Registry(environment: environment())
        let protection = protection(record(), peer())
        registry.entries.change { $0.primaries[uuid] = protection }
        func ask(_ verb: PeerRequest.Verb) -> ControlFailure? { registry.answer(PeerRequest(verb, host: "HOSTB", uuid: uuid)).failure }
        XCTAssertNil(ask(.claim))
        XCTAssertFalse(protection.claim("hostC"))
        protection.slotBox.change { $0 = [] }
        XCTAssertNil(ask(.unclaim))
        XCTAssertTrue(protection.claim("hostC"))
        XCTAssertNotNil(ask(.claim), "It has none any more")
    }
}
