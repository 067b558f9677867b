import ControlProtocol
import XCTest

final class ShadowChoiceTests: XCTestCase {
    func testHostAndMultiple() {
        XCTAssertEqual(ShadowChoice("b"), ShadowChoice(host: "b", multiple: 1))
        XCTAssertEqual(ShadowChoice("b.example.org:10"), ShadowChoice(host: "b.example.org", multiple: 10))
        XCTAssertEqual(ShadowChoice("b:1000")?.multiple, 1000)
    }

    func testWhatIsNeither() {
        for text in ["", ":", ":5", "b:", "b:0", "b:1001", "b:-1", "b:+1", "b:1.5", "b:ten", "b:1:2", "b: 1", "b:99999999999999999999"] { XCTAssertNil(ShadowChoice(text), text) }
    }
}
