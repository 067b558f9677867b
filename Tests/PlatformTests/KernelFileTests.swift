import Foundation
import XCTest
@testable import Platform

final class KernelFileTests: XCTestCase {
    /// Longer than what the kernel gives at once.
    func testLongList() throws {
        let some = try (0..<200).map { try MappedMemory.shared(memoryFile("kernel-file-\($0)", bytes: 4096).raw, length: 4096, what: "a test") }
        let text = try kernelText("/proc/self/maps")
        for index in some.indices { XCTAssertTrue(text.contains("/memfd:kernel-file-\(index) "), "\(index)") }
        withExtendedLifetime(some) {}
    }

    func testMissing() {
        XCTAssertThrowsError(try kernelText("/proc/self/nosuch")) { XCTAssertEqual("\($0)", "open /proc/self/nosuch: No such file or directory") }
    }
}
