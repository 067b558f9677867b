import Foundation
import XCTest
@testable import Libvirt

/// What handlers on the event loop's thread report, for a test that waits for it.
final class Recorder<Element: Sendable>: @unchecked Sendable {
    private let condition = NSCondition()
    private var elements: [Element] = []

    func append(_ element: Element) {
        condition.lock()
        elements.append(element)
        condition.broadcast()
        condition.unlock()
    }

    var all: [Element] {
        condition.lock()
        defer { condition.unlock() }
        return elements
    }

    /// The first element that fits, if it comes in time.
    func first(within seconds: Double = 20, where fits: (Element) -> Bool) -> Element? {
        let deadline = Date(timeIntervalSinceNow: seconds)
        condition.lock()
        defer { condition.unlock() }
        while true {
            if let element = elements.first(where: fits) { return element }
            if !condition.wait(until: deadline) { return elements.first(where: fits) }
        }
    }
}

/// Looks every 20 ms whether something has become true.
func eventually(within seconds: Double = 20, _ condition: () throws -> Bool) rethrows -> Bool {
    let deadline = Date(timeIntervalSinceNow: seconds)
    while true {
        if try condition() { return true }
        if Date() > deadline { return false }
        usleep(20_000)
    }
}

/// The libvirt error that `body` throws.
func libvirtError(file: StaticString = #filePath, line: UInt = #line, _ body: () throws -> Void) -> LibvirtError? {
    do {
        try body()
        XCTFail("No error", file: file, line: line)
    } catch let error as LibvirtError {
        return error
    } catch {
        XCTFail("Another error: \(error)", file: file, line: line)
    }
    return nil
}

/// A domain that the test driver accepts.
func testDomainXML(name: String, uuid: String = UUID().uuidString) -> String {
    """
    <domain type='test'><name>\(name)</name><uuid>\(uuid)</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>
      <os><type>hvm</type></os></domain>
    """
}
