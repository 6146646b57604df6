"""A report in a real Chromium, without a window and without a network.

python -m tests.browser workspace/report/index.html --screenshot page.png
"""

# ruff: noqa: T201 - run as a script it says what it did

import argparse
import base64
import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
COLUMN = """return Array.from(document.querySelectorAll('#table tbody tr'))
    .map((row) => row.cells[arguments[0]].dataset.v)"""
RANK, FORMULA, TC = 0, 1, 2  # columns of the table
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@contextlib.contextmanager
def open_page(page: Path) -> Iterator:
    """Selenium's driver with the page open."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        quiet = ("headless", "no-sandbox", "disable-dev-shm-usage", "force-prefers-reduced-motion")
        for option in (*quiet, "disable-gpu", "enable-unsafe-swiftshader", "window-size=1280,1600"):
            options.add_argument(f"--{option}")
        options.add_argument(f"--user-data-dir={folder}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        try:
            driver.set_page_load_timeout(120)
            driver.execute_cdp_cmd("Network.enable", {})
            offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
            driver.get(page.resolve().as_uri())
            yield driver
        finally:
            driver.quit()


def use_page(driver) -> dict[str, int]:
    """Sort, filter, open the first candidate, read on a phone, print; the console must stay without errors.

    Returns
    -------
    How many rows there are, how many hold the first one's first element, and how many plots the candidate has.
    """
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def click(element) -> None:
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def column(number: int) -> list[str]:
        return driver.execute_script(COLUMN, number)

    def fitting() -> int:
        """How many rows fit the filters, as the page says; it shows a part of them, and more when asked to."""
        text = driver.find_element(By.ID, "shown").text
        count = int(re.search(r"(\d+) (?:of \d+ shown|that fit shown)$", text).group(1))
        assert len(column(RANK)) == min(count, page)
        return count

    page = int(driver.find_element(By.ID, "table").get_attribute("data-page"))
    form = driver.find_element(By.ID, "filters")
    Select(form.find_element(By.NAME, "status")).select_by_value("")
    rows = fitting()
    heads = driver.find_elements(By.CSS_SELECTOR, "#table th button")
    for descending in (True, False):
        click(heads[TC])
        values = [float(value) for value in column(TC)]
        assert values == sorted(values, reverse=descending)
    if rows > page:
        click(driver.find_element(By.ID, "further"))
        assert len(column(TC)) == min(rows, 2 * page)

    element = min(re.findall("[A-Z][a-z]?", column(FORMULA)[0]))
    form.find_element(By.NAME, "holds").send_keys(element)
    holding = fitting()
    assert holding > 0
    assert all(element in re.findall("[A-Z][a-z]?", formula) for formula in column(FORMULA))
    form.find_element(By.NAME, "holds").clear()
    assert fitting() == rows

    click(heads[RANK])
    click(driver.find_element(By.CSS_SELECTOR, "a[data-panel='1']"))
    panel = driver.find_element(By.ID, "panel-1")
    WebDriverWait(driver, 30).until(lambda _: panel.get_attribute("open"))
    WebDriverWait(driver, 120).until(lambda _: len(panel.find_elements(By.CSS_SELECTOR, ".plot .main-svg")) >= 3)
    plots = driver.execute_script("return arguments[0].querySelectorAll('.plot').length", panel)
    assert plots == 3

    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    wide = "return document.documentElement.scrollWidth"  # plots follow the new width after a moment
    WebDriverWait(driver, 30).until(lambda _: driver.execute_script(wide) <= PHONE["width"])
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert base64.b64decode(driver.print_page()).startswith(b"%PDF")
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    return {"rows": rows, f"rows with {element}": holding, "plots of the first candidate": plots}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshot", help="PNG of the page with the first candidate open")
    arguments = parser.parse_args()
    with open_page(arguments.page) as driver:
        print(use_page(driver))
        if arguments.screenshot:
            driver.save_screenshot(arguments.screenshot)


if __name__ == "__main__":
    main()
