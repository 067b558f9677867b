import XCTest
@testable import Libvirt

final class DomainTests: XCTestCase {
    private var connection: Connection!

    override func setUpWithError() throws { connection = try Connection.open("test:///default") }
    override func tearDown() { connection.close() }

    func testLookupByNameIdAndUuid() throws {
        let test = try connection.lookup(name: "test")
        let id = try XCTUnwrap(test.id)
        XCTAssertEqual(test.uuid, "6695eb01-f6a4-8304-79aa-97f2502e193f")
        XCTAssertEqual(try connection.lookup(id: id).uuid, test.uuid)
        XCTAssertEqual(try connection.lookup(uuid: test.uuid.uppercased()).name, "test")
        for word in ["test", test.uuid, String(id)] { XCTAssertEqual(try connection.lookup(anyOf: word).uuid, test.uuid, word) }
    }

    /// A domain may be called like a number, or like another one's UUID.
    func testNamesThatLookLikeNumbers() throws {
        let domain = try connection.define(xml: testDomainXML(name: "424242"))
        defer { try? domain.undefine() }
        XCTAssertEqual(try connection.lookup(anyOf: "424242").uuid, domain.uuid)
    }

    func testNoSuchDomain() {
        for word in ["absent", "9999", UUID().uuidString] {
            let error = libvirtError { _ = try connection.lookup(anyOf: word) }
            XCTAssertEqual(error?.isNoDomain, true, word)
            XCTAssertEqual(error?.code, 42)
        }
        XCTAssertEqual(libvirtError { _ = try connection.lookup(uuid: "no uuid") }?.kind, .invalidArgument)
    }

    func testUnknownErrorCodesSurvive() {
        let error = LibvirtError(code: 4711, domain: 99, message: "New", call: "virNew")
        XCTAssertEqual(error.kind.rawValue, 4711)
        XCTAssertFalse(error.kind.isKnown)
        XCTAssertEqual(error.description, "New (virNew, libvirt error 4711)")
        XCTAssertEqual(DomainState(rawValue: 77).description, "77")
        XCTAssertEqual(DomainState.paused.describe(reason: 99), "99")
        XCTAssertEqual(DomainState.shutoff.describe(reason: 6), "failed")
    }

    func testLife() throws {
        let uuid = UUID().uuidString
        let domain = try connection.define(xml: testDomainXML(name: "life", uuid: uuid))
        XCTAssertEqual(domain.uuid, uuid.lowercased())
        XCTAssertNil(domain.id)
        XCTAssertTrue(try domain.isPersistent())
        XCTAssertFalse(try domain.isActive())
        XCTAssertEqual(try domain.state().state, .shutoff)

        try domain.start()
        XCTAssertNotNil(domain.id)
        XCTAssertTrue(try domain.isActive())
        let running = try domain.state()
        XCTAssertEqual(running.state, .running)
        XCTAssertEqual(RunningReason(rawValue: running.reason), .booted)
        XCTAssertTrue(try connection.domains([.active]).contains { $0.uuid == domain.uuid })
        XCTAssertFalse(try connection.domains([.inactive]).contains { $0.uuid == domain.uuid })

        try domain.suspend()
        let paused = try domain.state()
        XCTAssertEqual(paused.state, .paused)
        XCTAssertEqual(PausedReason(rawValue: paused.reason), .user)
        try domain.resume()
        XCTAssertEqual(try domain.state().state, .running)

        try domain.destroy()
        let stopped = try domain.state()
        XCTAssertEqual(stopped.state, .shutoff)
        XCTAssertEqual(ShutoffReason(rawValue: stopped.reason), .destroyed)
        XCTAssertEqual(libvirtError { try domain.destroy() }?.isOperationInvalid, true)
        try domain.undefine()
        XCTAssertEqual(libvirtError { _ = try domain.state() }?.isNoDomain, true)
    }

    func testTransientDomain() throws {
        let domain = try connection.create(xml: testDomainXML(name: "transient"))
        XCTAssertFalse(try domain.isPersistent())
        XCTAssertEqual(try domain.state().state, .running)
        try domain.destroy()
        XCTAssertEqual(libvirtError { _ = try domain.xml() }?.isNoDomain, true)
    }

    func testXmlErrors() {
        XCTAssertEqual(libvirtError { try connection.define(xml: "<domain") }?.kind, .xmlDetail)
        XCTAssertNotNil(libvirtError { _ = try connection.create(xml: "<domain type='test'/>") })
    }

    func testXmlAndAutostart() throws {
        let domain = try connection.define(xml: testDomainXML(name: "autostart"))
        defer { try? domain.undefine() }
        XCTAssertTrue(try domain.xml(flags: [.inactive, .secure]).contains("<name>autostart</name>"))
        XCTAssertFalse(try domain.autostart())
        try domain.setAutostart(true)
        XCTAssertTrue(try domain.autostart())
        XCTAssertFalse(try domain.hasManagedSave())
        XCTAssertFalse(try domain.isUpdated())
    }

    func testMetadata() throws {
        let domain = try connection.define(xml: testDomainXML(name: "metadata"))
        defer { try? domain.undefine() }
        let namespace = "http://example.org/policy/1"
        XCTAssertNil(try domain.metadata(namespace: namespace))
        try domain.setMetadata("<policy interval='10'/>", namespace: namespace, prefix: "p", impact: [.config])
        XCTAssertTrue(try XCTUnwrap(domain.metadata(namespace: namespace)).contains("interval=\"10\""))
        try domain.setMetadata("<policy interval='20'/>", namespace: namespace, prefix: "p", impact: [.config])
        let replaced = try XCTUnwrap(domain.metadata(namespace: namespace))
        XCTAssertTrue(replaced.contains("interval=\"20\"") && !replaced.contains("interval=\"10\""))
        try domain.setMetadata(nil, namespace: namespace, prefix: "p", impact: [.config])
        XCTAssertNil(try domain.metadata(namespace: namespace))
        try domain.setTitle("A title")
        XCTAssertEqual(try domain.title(), "A title")
        XCTAssertNil(try domain.descriptionText())
    }

    func testStatistics() throws {
        let statistics = try connection.lookup(name: "test").statistics([.state])
        XCTAssertEqual(statistics.domainName, "test")
        XCTAssertEqual(statistics.state, .running)
        XCTAssertNil(statistics.cpuNanoseconds)
        XCTAssertEqual(statistics.blocks, [])
        XCTAssertTrue(try connection.statistics().contains { $0.domainName == "test" && $0.state == .running })
        XCTAssertEqual(try connection.statistics(of: [connection.lookup(name: "test")], [.state]).map(\.domainName), ["test"])
        XCTAssertEqual(try connection.statistics(of: []), [], "of none, not of all")
    }

    func testGroupsOfStatistics() {
        let statistics = DomainStatistics(domainName: "a", domainUUID: "b", values: [
            "block.count": .uint(2), "block.0.name": .string("vda"), "block.0.wr.bytes": .ulong(0), "block.1.name": .string("vdb"),
            "net.count": .uint(.max), "vcpu.maximum": .uint(2), "vcpu.1.state": .int(1), "vcpu.1.time": .ulong(5), "vcpu.1.halted": .bool(true),
        ])
        XCTAssertEqual(statistics.blocks.map(\.name), ["vda", "vdb"])
        XCTAssertEqual(statistics.blocks[0].writeBytes, 0)
        XCTAssertNil(statistics.blocks[1].writeBytes)
        XCTAssertEqual(statistics.vcpus.map(\.index), [1])
        XCTAssertEqual(statistics.vcpus[0].isHalted, true)
        XCTAssertEqual(statistics.interfaces.count, 65_536)
    }

    func testWhatTheDriverLacksIsNotSupported() throws {
        let domain = try connection.lookup(name: "test")
        XCTAssertEqual(libvirtError { _ = try domain.monitorJSON("{}") }?.isNotSupported, true)
        XCTAssertEqual(libvirtError { _ = try connection.onMonitorEvent { _ in } }?.isNotSupported, true)
        XCTAssertEqual(libvirtError { try domain.blockJobAbort(disk: "vda") }?.isNotSupported, true)
        XCTAssertTrue(try connection.sysinfo().contains("<sysinfo"))
    }
}
