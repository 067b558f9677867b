import FoundationXML
import Libvirt
import XCTest
@testable import Configuration
@testable import ControlProtocol
@testable import Orchestration

final class MigrationCallTests: XCTestCase {
    private let peer = Peer(name: "b", address: PeerAddress(host: "192.0.2.2", port: 16520), libvirtURI: "qemu+tls://root@b.example:16514/system")

    private let xml = """
        <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>web1</name>
          <devices>
            <disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='p' volume='web1.qcow2'/><target dev='vda' bus='virtio'/></disk>
            <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/nfs/x.img'/><target dev='vdb' bus='virtio'/></disk>
            <disk type='file' device='cdrom'><source file='/iso/x.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
          </devices>
          <qemu:commandline><qemu:arg value='-incoming'/><qemu:arg value='defer'/></qemu:commandline>
        </domain>
        """

    private func call(_ options: MigrationOptions = MigrationOptions(), isPersistent: Bool = true, disks: [String] = ["vda"]) throws -> MigrationCall {
        try MigrationCall(to: peer, options, xml: xml, persistentXML: isPersistent ? xml : nil,
                          layout: ReplicaLayout(replicas: disks.isEmpty ? [:] : ["vda": "/pool/web1.raw"], emptied: ["sda"]), disks: disks)
    }

    func testWhatAnOrdinaryGuestNeeds() throws {
        let call = try call()
        XCTAssertEqual(call.uri, peer.libvirtURI)
        XCTAssertEqual(call.flags, [.live, .peerToPeer, .abortOnError, .persistDestination, .undefineSource, .nonSharedDisk, .autoConverge])
        XCTAssertEqual(call.parameters.string(MigrateParameter.uri), "tcp://192.0.2.2")
        XCTAssertEqual(call.parameters.all(MigrateParameter.migrateDisks), [.string("vda")])
        XCTAssertNil(call.parameters[MigrateParameter.bandwidth])
    }

    /// The copied disk is where its volume is, the shared one where it was, the drive without its medium empty; for both definitions.
    func testTheTargetsXML() throws {
        for name in [MigrateParameter.destinationXML, MigrateParameter.persistentXML] {
            let text = try XCTUnwrap(call().parameters.string(name))
            let root = try XCTUnwrap(XMLDocument(xmlString: text).rootElement())
            func value(_ path: String) throws -> String? { try root.nodes(forXPath: path).first?.stringValue }
            XCTAssertEqual(try value("devices/disk[target/@dev='vda']/source/@file"), "/pool/web1.raw")
            XCTAssertEqual(try value("devices/disk[target/@dev='vda']/driver/@type"), "raw")
            XCTAssertEqual(try value("devices/disk[target/@dev='vdb']/source/@file"), "/nfs/x.img")
            XCTAssertEqual(try root.nodes(forXPath: "devices/disk[target/@dev='sda']/source").count, 0)
            XCTAssertFalse(text.contains("-incoming"), "It would wait for a state that has come already")
        }
    }

    func testATransientGuestStaysOne() throws {
        let call = try call(isPersistent: false, disks: [])
        XCTAssertEqual(call.flags, [.live, .peerToPeer, .abortOnError, .autoConverge])
        XCTAssertNil(call.parameters[MigrateParameter.persistentXML])
    }

    func testOptions() throws {
        var options = MigrationOptions()
        options.bandwidthBytesPerSecond = 50 << 20
        options.autoConverge = false
        options.postcopy = true
        options.parallel = 4
        options.compress = true
        options.tls = true
        let call = try call(options)
        XCTAssertEqual(call.flags, [.live, .peerToPeer, .abortOnError, .persistDestination, .undefineSource, .nonSharedDisk, .postCopy, .parallel, .compressed, .tls])
        XCTAssertEqual(call.parameters[MigrateParameter.bandwidth], .ulong(50))
        XCTAssertEqual(call.parameters[MigrateParameter.parallelConnections], .int(4))
        XCTAssertEqual(call.parameters.string(MigrateParameter.compression), "zstd")
        XCTAssertEqual(call.parameters.string(MigrateParameter.tlsDestination), "b.example")
        options.parallel = nil
        XCTAssertEqual(try self.call(options).parameters.string(MigrateParameter.compression), "xbzrle")
    }

    func testHostsOfURIs() {
        for (uri, host) in [("qemu+ssh://root@b/system", "b"), ("qemu+tls://b.example:16514/system?x=1", "b.example"), ("qemu+tcp://[2001:db8::2]:16509/system", "2001:db8::2"),
                            ("qemu+tcp://10.0.0.2/system", "10.0.0.2")] {
            XCTAssertEqual(MigrationCall.host(of: uri), host)
        }
        XCTAssertNil(MigrationCall.host(of: "qemu:///system"))
        XCTAssertNil(MigrationCall.host(of: "b"))
        XCTAssertEqual(MigrationCall.bracketed("2001:db8::2"), "[2001:db8::2]")
    }

    func testRecordsSurvive() throws {
        let folder = NSTemporaryDirectory() + "/migrations-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let store = MigrationStore(stateDirectory: folder)
        XCTAssertEqual(store.load().count, 0)
        XCTAssertNil(store.bandwidth(to: "b"))
        let record = MigrationRecord(uuid: "u", domain: "web1", peer: "b", options: MigrationOptions(), isPersistent: true, autostart: true, sources: [:], copies: ["vda": "/x"])
        try store.write(record)
        let incoming = IncomingRecord(session: record.session, domain: "web1", made: ["vda"], taken: ["vdb"])
        try store.write(incoming, "u")
        store.note(bandwidth: 7, to: "b")
        XCTAssertEqual(store.load().map(\.copies), [["vda": "/x"]])
        XCTAssertEqual(store.incoming("u"), incoming)
        XCTAssertEqual(store.record("u")?.session, record.session)
        XCTAssertEqual(store.bandwidth(to: "b"), 7)
        store.remove("u")
        store.removeIncoming("u")
        XCTAssertEqual(store.load().count, 0)
        XCTAssertNil(store.incoming("u"))
    }
}
