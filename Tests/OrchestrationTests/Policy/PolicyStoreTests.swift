@testable import Orchestration
import ControlProtocol
import Libvirt
import XCTest

/// A policy in a domain's metadata, with libvirt's test driver.
final class PolicyStoreTests: XCTestCase {
    private var connection: Connection!

    override func setUpWithError() throws { connection = try Connection.open("test:///default") }
    override func tearDown() { connection.close() }

    private func policy(_ intervalMs: Double) -> DomainPolicy {
        var policy = DomainPolicy()
        policy.intervalMs = intervalMs
        return policy
    }

    private func text(_ domain: Domain, _ impact: ModificationImpact) throws -> DomainPolicy? {
        try domain.metadata(namespace: DomainPolicy.namespace, impact: impact).map { text throws in try DomainPolicy(xml: text) }
    }

    func testWrittenLiveAndPersistent() throws {
        let store = PolicyStore(domain: try connection.lookup(name: "test"))
        XCTAssertNil(try store.read())
        try store.write(policy(20))
        XCTAssertEqual(try store.read(), policy(20))
        XCTAssertEqual(try text(store.domain, .live), policy(20))
        XCTAssertEqual(try text(store.domain, .config), policy(20))
        let xml = try store.domain.xml()
        XCTAssertTrue(xml.contains("<shadow:policy xmlns:shadow=\"https://shadow-virt.org/domain/1\""), xml)
        try store.write(text: nil)
        XCTAssertNil(try store.read())
    }

    func testStoppedDomain() throws {
        let domain = try connection.lookup(name: "test")
        try domain.destroy()
        let store = PolicyStore(domain: domain)
        try store.write(policy(30))
        XCTAssertEqual(try store.read(), policy(30))
        try domain.start()
        XCTAssertEqual(try text(domain, .live), policy(30), "A start takes it over")
    }

    /// After a hand-over the running definition may be older; a tool that redefines a domain drops what it does not know.
    func testReconciled() throws {
        let domain = try connection.lookup(name: "test")
        let store = PolicyStore(domain: domain)
        try store.write(policy(20))
        try domain.setMetadata(policy(50).xml, namespace: DomainPolicy.namespace, prefix: DomainPolicy.prefix, impact: .config)
        XCTAssertEqual(try store.read(), policy(50), "The persistent one counts")
        try store.reconcile()
        XCTAssertEqual(try text(domain, .live), policy(50))
        try domain.setMetadata(nil, namespace: DomainPolicy.namespace, prefix: DomainPolicy.prefix, impact: .config)
        XCTAssertEqual(try text(domain, .config), nil)
        try store.reconcile()
        XCTAssertEqual(try text(domain, .config), policy(50))
    }

    func testTransientDomain() throws {
        let domain = try connection.create(xml: "<domain type='test'><name>job</name><memory unit='MiB'>16</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>")
        let store = PolicyStore(domain: domain)
        try store.write(policy(20))
        XCTAssertEqual(try store.read(), policy(20))
        try store.reconcile()
        XCTAssertEqual(try store.read(), policy(20))
    }
}
