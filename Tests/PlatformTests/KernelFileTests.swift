import Foundation
import XCTest
@testable import Platform

final class KernelFileTests: XCTestCase {
    /// Longer than what the kernel gives at once.
    func testLongList() throws {
        let some = try (0..<200).map { index in
            let file = try memoryFile("kernel-file-\(index)", bytes: 4096)
            return try MappedMemory.shared(file.raw, length: 4096, what: "a test")
        }
        let text = try kernelText("/proc/self/maps")
        for index in some.indices { XCTAssertTrue(text.contains("/memfd:kernel-file-\(index) "), "\(index)") }
        withExtendedLifetime(some) {}
    }

    func testMissing() {
        XCTAssertThrowsError(try kernelText("/proc/self/nosuch")) { XCTAssertEqual("\($0)", "open /proc/self/nosuch: No such file or directory") }
    }
}
