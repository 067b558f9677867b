import XCTest
@testable import Libvirt

final class MetadataEventTests: XCTestCase {
    func testTellsDomainAndNamespace() throws {
        let connection = try Connection.open("test:///default")
        defer { connection.close() }
        let domain = try connection.lookup(name: "test")
        let events = Recorder<MetadataEvent>()
        let subscription = try connection.onMetadataChange { events.append($0) }
        try domain.setMetadata("<policy/>", namespace: "https://example.org/1", prefix: "x", impact: .live)
        try domain.setTitle("A title", impact: .live)
        XCTAssertNotNil(events.first { $0.namespace == "https://example.org/1" && $0.domainUUID == domain.uuid && $0.domainName == "test" })
        XCTAssertNotNil(events.first { $0.namespace == nil })
        subscription.cancel()
    }
}
