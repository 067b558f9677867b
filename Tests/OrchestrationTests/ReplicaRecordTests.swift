import ControlProtocol
import Foundation
import Libvirt
import XCTest
@testable import Orchestration

final class ReplicaRecordTests: XCTestCase {
    private let folder = NSTemporaryDirectory() + "replica-records-\(UUID().uuidString)"
    private var provisioner: ReplicaProvisioner {
        ReplicaProvisioner(uuid: Samples.uuid.uppercased(), domain: "web1", host: "b", stateDirectory: folder) { throw ControlFailure("no libvirt here") }
    }

    override func setUpWithError() throws { try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true) }
    override func tearDown() { try? FileManager.default.removeItem(atPath: folder) }

    private func image(_ name: String, modified: Date = Date(timeIntervalSince1970: 1_000_000)) throws -> String {
        let path = "\(folder)/\(name)"
        try Data(count: 4096).write(to: URL(fileURLWithPath: path))
        try FileManager.default.setAttributes([.modificationDate: modified], ofItemAtPath: path)
        return path
    }

    private func plan(_ path: String, format: String = "raw") throws -> DiskPlan {
        DiskPlan(try Samples.definition(Samples.file("vda", path, format: format)), facts: ["vda": Samples.facts(path, capacity: 4096)])
    }

    private func disk() throws -> ReplicaRecord.Disk { try XCTUnwrap(provisioner.records.read(Samples.uuid)?.disks["vda"]) }

    func testAPrimarysDiskBecomesAFormerOne() throws {
        let path = try image("a.img")
        try provisioner.notePrimary(plan(path))
        XCTAssertEqual(try disk().status, .inUse)
        try provisioner.noteFormerPrimary(wentOverAt: 1_000_000_000_000_000)
        XCTAssertEqual(try disk().status, .replica)
        XCTAssertEqual(try disk().origin, .formerPrimary)
        XCTAssertEqual(try disk().identity?.modified, 1_000_000_000_000_000)
        try provisioner.noteInUse()
        XCTAssertEqual(try disk().status, .inUse)
        XCTAssertNil(try disk().identity)
        try provisioner.noteStale("it was started by hand")
        XCTAssertEqual(try disk().reason, "it was started by hand")
        provisioner.remove()
        XCTAssertNil(try provisioner.records.read(Samples.uuid))
        XCTAssertFalse(FileManager.default.fileExists(atPath: "\(folder)/replicas/\(Samples.uuid)"))
    }

    func testADiskThatRanOnIsStale() throws {
        try provisioner.notePrimary(plan(try image("a.img", modified: Date(timeIntervalSince1970: 1_000_003))))
        try provisioner.noteFormerPrimary(wentOverAt: 1_000_000_000_000_000)
        XCTAssertEqual(try disk().status, .stale)
        XCTAssertEqual(try disk().reason, "it was written to at 1970-01-12T13:46:43.000Z, and the guest had gone over at 1970-01-12T13:46:40.000Z")
    }

    /// What was created for the guest stays known as such when the guest runs on it and goes back again.
    func testOriginSurvivesARoundTrip() throws {
        let path = try image("a.img")
        try provisioner.records.change(Samples.uuid) {
            $0.disks["vda"] = .init(path: path, capacityBytes: 4096, pool: "p", origin: .created, status: .replica)
        }
        try provisioner.noteInUse()
        try provisioner.notePrimary(plan(path))
        try provisioner.noteFormerPrimary(wentOverAt: nil)
        XCTAssertEqual(try disk().origin, .created)
        XCTAssertEqual(try disk().status, .replica)
    }

    func testIdentities() throws {
        let path = try image("a.img")
        let before = try XCTUnwrap(FileIdentity(path: path))
        XCTAssertNil(before.difference(from: try XCTUnwrap(FileIdentity(path: path))))
        _ = try image("a.img", modified: Date(timeIntervalSince1970: 1_000_001))
        let touched = try XCTUnwrap(FileIdentity(path: path))
        var sameFile = before
        sameFile.inode = touched.inode
        XCTAssertEqual(sameFile.difference(from: touched), "it was written to at 1970-01-12T13:46:41.000Z, after 1970-01-12T13:46:40.000Z, when it was last known")
        // Written to by ourselves until we were cut off: only another file in its place counts.
        sameFile.modified = nil
        XCTAssertNil(sameFile.difference(from: touched))
        sameFile.inode += 1
        XCTAssertEqual(sameFile.difference(from: touched), "it is another file than it was")
        XCTAssertNil(FileIdentity(path: "/dev/null"))
        XCTAssertNil(FileIdentity(path: "\(folder)/absent"))
    }

    /// A writer that died at any step leaves the old record or the new one.
    func testACutOffWriteIsNoRecord() throws {
        try provisioner.notePrimary(plan(try image("a.img")))
        let file = "\(folder)/replicas/\(Samples.uuid)/replicas.json"
        let whole = try Data(contentsOf: URL(fileURLWithPath: file))
        for length in [0, 1, whole.count / 2, whole.count] {
            try whole.prefix(length).write(to: URL(fileURLWithPath: file + ".new"))
            XCTAssertEqual(try disk().status, .inUse)
        }
        try provisioner.noteFormerPrimary(wentOverAt: nil)
        XCTAssertFalse(FileManager.default.fileExists(atPath: file + ".new"))
        // Damaged: never taken for "nothing is known", which would allow everything.
        try whole.prefix(20).write(to: URL(fileURLWithPath: file))
        XCTAssertThrowsError(try provisioner.records.read(Samples.uuid))
        XCTAssertThrowsError(try provisioner.noteInUse())
    }

    func testRecordsOfAnOlderReleaseAreRead() throws {
        let old = """
            {"domain":"web1","intervalMs":20,"peer":"b","phase":"protecting","role":"primary","savedParameters":{},"schema":1,
             "session":"8F8A7C1E-0000-4000-8000-000000000002","uuid":"\(Samples.uuid)","withoutDisks":true}
            """
        var record = try JSONDecoder().decode(ProtectionRecord.self, from: Data(old.utf8))
        XCTAssertNil(record.pool)
        XCTAssertNil(record.onFailure)
        var request = ProtectRequest()
        request.pool = "fast"
        request.discardStale = true
        request.diskRateBytesPerSecond = 1 << 20
        request.onFailure = .restart
        record.apply(request)
        let again = try JSONDecoder().decode(ProtectionRecord.self, from: JSONEncoder().encode(record))
        XCTAssertEqual([again.pool, again.onFailure?.rawValue], ["fast", "restart"])
        XCTAssertEqual(again.discardStale, true)
        XCTAssertEqual(again.diskRateBytesPerSecond, 1 << 20)
    }

    func testPeersOfAnOlderRelease() throws {
        let facts = try JSONDecoder().decode(HostFacts.self, from: Data(#"{"libvirtVersion":"9.0.0","hypervisorVersion":"7.2.0","freeMemoryBytes":1,"machines":[],"hasKVM":true}"#.utf8))
        XCTAssertNil(facts.disks)
        let request = try JSONDecoder().decode(PeerRequest.self, from: Data(#"{"verb":"prepare","host":"a"}"#.utf8))
        XCTAssertNil(request.disks)
        XCTAssertNil(try JSONDecoder().decode(PeerResponse.self, from: Data("{}".utf8)).replicas)
    }
}
