import XCTest
@testable import Libvirt

final class TypedParametersTests: XCTestCase {
    func testRoundTripThroughC() throws {
        let parameters: TypedParameters = [
            "int": .int(-1), "uint": .uint(.max), "long": .long(.min), "ulong": .ulong(.max), "double": .double(0.5),
            "yes": .bool(true), "no": .bool(false), "text": .string("déjà vu"), "text": .string(""),
        ]
        XCTAssertEqual(parameters.withC { TypedParameters($0, count: $1) }, parameters)
        XCTAssertEqual(TypedParameters().withC { TypedParameters($0, count: $1) }, TypedParameters())
    }

    func testZeroIsNotUnreported() {
        let parameters: TypedParameters = ["zero": .ulong(0)]
        XCTAssertEqual(parameters.unsigned("zero"), 0)
        XCTAssertNil(parameters.unsigned("absent"))
        XCTAssertNil(parameters["absent"])
    }

    func testIntegersOfEveryWidth() {
        let parameters: TypedParameters = ["a": .int(-1), "b": .ulong(.max), "c": .uint(7), "d": .string("7")]
        XCTAssertEqual(parameters.integer("a"), -1)
        XCTAssertNil(parameters.unsigned("a"))
        XCTAssertEqual(parameters.unsigned("b"), .max)
        XCTAssertNil(parameters.integer("b"))
        XCTAssertEqual(parameters.unsigned("c"), 7)
        XCTAssertEqual(parameters.double("c"), 7)
        XCTAssertNil(parameters.integer("d"))
    }

    func testNamesMayRepeat() {
        let parameters: TypedParameters = ["disk": .string("vda"), "disk": .string("vdb")]
        XCTAssertEqual(parameters.all("disk"), [.string("vda"), .string("vdb")])
        XCTAssertEqual(parameters.string("disk"), "vda")
    }

    /// libvirt's limit is 80 bytes with the terminating zero.
    func testNameTooLongIsAnError() {
        var parameters = TypedParameters()
        parameters.append(String(repeating: "x", count: 200), .int(1))
        XCTAssertNil(parameters.withC { _, _ in true })
        XCTAssertNotEqual(LibvirtError.last("virTypedParamsAddInt").kind, .ok)
    }
}
